package gateway

import (
	"bytes"
	_ "embed"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
)

// descriptionPath is where the description of all faces is, in OpenAPI 2.0.
const descriptionPath = "/openapi.json"

var (
	//go:embed v1.swagger.json
	generated []byte // from the .proto files
	//go:embed faces.json
	written []byte // the other faces, and what holds for all
)

// description joins what is generated with what is written by hand, whose members
// win, except that paths, definitions and tags are added to those that are there.
func description() ([]byte, error) {
	var doc, more map[string]any
	if err := json.Unmarshal(generated, &doc); err != nil {
		return nil, fmt.Errorf("v1.swagger.json: %w", err)
	}
	if err := json.Unmarshal(written, &more); err != nil {
		return nil, fmt.Errorf("faces.json: %w", err)
	}
	withoutAbsent(doc)
	for name, member := range more {
		have, isObject := doc[name].(map[string]any)
		add, ok := member.(map[string]any)
		if !isObject || !ok || name == "info" {
			doc[name] = member
			continue
		}
		for k, v := range add {
			if _, there := have[k]; there {
				return nil, fmt.Errorf("faces.json: %s %s is in v1.swagger.json too", name, k)
			}
			have[k] = v
		}
	}
	var out bytes.Buffer // for an encoder that leaves < and > alone
	enc := json.NewEncoder(&out)
	enc.SetEscapeHTML(false)
	err := enc.Encode(doc)
	return out.Bytes(), err
}

// withoutAbsent takes out the path parameters that the generator makes of a name
// which is all literal, as in {name=keyEncryption}.
func withoutAbsent(doc map[string]any) {
	paths, _ := doc["paths"].(map[string]any)
	for path, item := range paths {
		operations, _ := item.(map[string]any)
		for _, operation := range operations {
			op, _ := operation.(map[string]any)
			parameters, _ := op["parameters"].([]any)
			parameters = slices.DeleteFunc(parameters, func(parameter any) bool {
				p, _ := parameter.(map[string]any)
				return p["in"] == "path" && !strings.Contains(path, fmt.Sprintf("{%s}", p["name"]))
			})
			if op["parameters"] != nil {
				op["parameters"] = parameters
			}
		}
	}
}
