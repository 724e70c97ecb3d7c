package gateway

import (
	"bytes"
	_ "embed"
	"encoding/json"
	"fmt"
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
	var out bytes.Buffer
	enc := json.NewEncoder(&out)
	enc.SetEscapeHTML(false)
	err := enc.Encode(doc)
	return out.Bytes(), err
}
