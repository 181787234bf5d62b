// Kstatus says what Flux, Argo CD and `helm --wait` would make of an object: it is their own library, asked through a
// pipe. It exists so that the tests judge our conditions by the judge's code and not by our reading of its rules.
// It must not look at a cluster: what it says depends on its input alone.
//
// It reads JSON on standard input (objects one after another, arrays of objects, or lists as kubectl prints them) and
// writes one line an object: {"name": "...", "status": "Current", "message": "..."}.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/fluxcd/cli-utils/pkg/kstatus/status"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	wholenumbers "k8s.io/apimachinery/pkg/util/json"
)

type verdict struct {
	Name    string `json:"name"`
	Status  string `json:"status"`
	Message string `json:"message"`
}

func main() {
	if err := run(os.Stdin, os.Stdout); err != nil {
		fmt.Fprintf(os.Stderr, "kstatus: %v\n", err)
		os.Exit(1)
	}
}

func run(in io.Reader, out io.Writer) error {
	values := json.NewDecoder(in)
	lines := json.NewEncoder(out)
	for {
		var raw json.RawMessage
		err := values.Decode(&raw)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read an object: %w", err)
		}
		// The API machinery's own reading keeps whole numbers whole, which kstatus insists on.
		var value any
		if err := wholenumbers.Unmarshal(raw, &value); err != nil {
			return fmt.Errorf("read an object: %w", err)
		}
		objects, err := objectsOf(value)
		if err != nil {
			return err
		}
		for _, object := range objects {
			judged, err := judge(object)
			if err != nil {
				return err
			}
			if err := lines.Encode(judged); err != nil {
				return fmt.Errorf("write a verdict: %w", err)
			}
		}
	}
}

// objectsOf flattens one JSON value: an array, a list with items, or a single object.
func objectsOf(value any) ([]map[string]any, error) {
	switch value := value.(type) {
	case map[string]any:
		items, listed := value["items"].([]any)
		if !listed {
			return []map[string]any{value}, nil
		}
		return objectsOf(items)
	case []any:
		var objects []map[string]any
		for _, item := range value {
			inner, err := objectsOf(item)
			if err != nil {
				return nil, err
			}
			objects = append(objects, inner...)
		}
		return objects, nil
	default:
		return nil, fmt.Errorf("want an object, an array or a list, found %T", value)
	}
}

func judge(object map[string]any) (verdict, error) {
	whole := unstructured.Unstructured{Object: object}
	result, err := status.Compute(&whole)
	if err != nil {
		return verdict{}, fmt.Errorf("compute the status of %q: %w", whole.GetName(), err)
	}
	return verdict{Name: whole.GetName(), Status: result.Status.String(), Message: result.Message}, nil
}
