package config

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// EnvVar is the environment variable that names the configuration file.
const EnvVar = "DKIMCTL_CONFIG"

// fileName is the name of the file where nobody gave another.
const fileName = "dkimctl.yaml"

// ErrNotFound is wrapped by the error of Find when there is no file.
var ErrNotFound = errors.New("no client configuration")

// Find returns the path of the configuration file: flag, else that of
// DKIMCTL_CONFIG, else ./data/dkimctl.yaml, else dkimzone/dkimctl.yaml in the
// user's configuration directory. One that is named must be there; of the others
// the first that is there counts. Its error wraps ErrNotFound and says where it
// looked and what to do.
func Find(flag string) (string, error) {
	for _, named := range []struct{ by, path string }{{"--config", flag}, {EnvVar, os.Getenv(EnvVar)}} {
		if named.path == "" {
			continue
		}
		if info, err := os.Stat(named.path); err != nil {
			return "", fmt.Errorf("%w: %s names %s, which cannot be read (%w)", ErrNotFound, named.by, named.path, reason(err))
		} else if info.IsDir() {
			return "", fmt.Errorf("%w: %s names %s, which is a directory; name the file in it", ErrNotFound, named.by, named.path)
		}
		return named.path, nil
	}
	places := []string{filepath.Join("data", fileName)}
	if dir, err := os.UserConfigDir(); err == nil {
		places = append(places, filepath.Join(dir, "dkimzone", fileName))
	}
	for _, path := range places {
		_, err := os.Stat(path)
		if err == nil {
			return path, nil
		}
		if !errors.Is(err, os.ErrNotExist) { // there, but not for us: do not go on to another installation
			return "", fmt.Errorf("%w: %w", ErrNotFound, err)
		}
	}
	return "", fmt.Errorf("%w: --config and %s are not set and there is no %s; run dkimctl where dkimd standalone has its data directory, or name the dkimctl.yaml in it with --config or %s",
		ErrNotFound, EnvVar, strings.Join(places, " and no "), EnvVar)
}

// reason is err without the path, which the caller has named.
func reason(err error) error {
	if pathError, ok := errors.AsType[*os.PathError](err); ok {
		return pathError.Err
	}
	return err
}
