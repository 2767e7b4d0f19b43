package record

import (
	"encoding/json"
	"errors"
	"fmt"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/crio-minimal/crio/internal/pod"
	"github.com/crio-minimal/crio/internal/sys"
)

// The bodies shadow pod's values field by field where the value holds a protobuf
// message: encoding/json would write its internals. No field has omitempty, since
// a field that is missing would look unknown to keepUnknown.
type (
	sandboxBody struct {
		pod.Sandbox
		Config    json.RawMessage
		Overhead  json.RawMessage
		Resources json.RawMessage
	}
	containerBody struct {
		pod.Container
		Config    json.RawMessage
		User      json.RawMessage
		Resources json.RawMessage
		Update    json.RawMessage
	}
)

var errNoConfig = errors.New("the record has no config")

// Sandboxes are the records of the sandboxes.
type Sandboxes struct{ *Dir }

// Save writes the sandbox. CNI ADD wants it synced, and so is whatever takes the place of
// that: IPAM's own files survive a power cut.
func (s Sandboxes) Save(value pod.Sandbox) error {
	body := sandboxBody{Sandbox: value}
	err := errors.Join(
		marshal(&body.Config, value.Config), marshal(&body.Overhead, value.Overhead), marshal(&body.Resources, value.Resources),
	)
	if err != nil {
		return fmt.Errorf("record %s: %w", value.ID, err)
	}
	return s.Dir.Save(value.ID, body, sys.WriteFileSync)
}

// LoadAll returns every sandbox that can be read, and those that cannot.
func (s Sandboxes) LoadAll(dead func(id string) bool) ([]pod.Sandbox, []Broken, error) {
	var all []pod.Sandbox
	broken, err := s.Dir.LoadAll(dead, func(id string, body []byte) (any, error) {
		b, err := decodeSandbox(id, body)
		if err == nil {
			all = append(all, b.Sandbox)
		}
		return b, err
	})
	return all, broken, err
}

func decodeSandbox(id string, data []byte) (sandboxBody, error) {
	var b sandboxBody
	if err := json.Unmarshal(data, &b); err != nil {
		return b, err
	}
	err := errors.Join(
		unmarshal("config", b.Config, &b.Sandbox.Config), unmarshal("overhead", b.Overhead, &b.Sandbox.Overhead),
		unmarshal("resources", b.Resources, &b.Sandbox.Resources),
	)
	// Records from before UpdatePodSandboxResources.
	if b.Overhead == nil && b.Resources == nil {
		b.Sandbox.Overhead, b.Sandbox.Resources = b.Sandbox.Config.GetLinux().GetOverhead(), b.Sandbox.Config.GetLinux().GetResources()
	}
	if b.Sandbox.Config == nil {
		err = errors.Join(err, errNoConfig)
	}
	// As this daemon knows them, for keepUnknown.
	err = errors.Join(err, marshal(&b.Config, b.Sandbox.Config), marshal(&b.Overhead, b.Sandbox.Overhead), marshal(&b.Resources, b.Sandbox.Resources))
	return b, errors.Join(err, checkID(id, b.ID))
}

// Containers are the records of the containers.
type Containers struct{ *Dir }

// Save writes the container. It has not to be synced: Kubernetes does not reuse a
// container's layer after a crash of the node, so there is nothing to protect.
func (c Containers) Save(value pod.Container) error {
	body := containerBody{Container: value}
	err := errors.Join(
		marshal(&body.Config, value.Config), marshal(&body.User, value.User),
		marshal(&body.Resources, value.Resources), marshal(&body.Update, value.Update),
	)
	if err != nil {
		return fmt.Errorf("record %s: %w", value.ID, err)
	}
	return c.Dir.Save(value.ID, body, sys.WriteFile)
}

// LoadAll returns every container that can be read, and those that cannot.
func (c Containers) LoadAll(dead func(id string) bool) ([]pod.Container, []Broken, error) {
	var all []pod.Container
	broken, err := c.Dir.LoadAll(dead, func(id string, body []byte) (any, error) {
		b, err := decodeContainer(id, body)
		if err == nil {
			all = append(all, b.Container)
		}
		return b, err
	})
	return all, broken, err
}

func decodeContainer(id string, data []byte) (containerBody, error) {
	var b containerBody
	if err := json.Unmarshal(data, &b); err != nil {
		return b, err
	}
	err := errors.Join(
		unmarshal("config", b.Config, &b.Container.Config), unmarshal("user", b.User, &b.Container.User),
		unmarshal("resources", b.Resources, &b.Container.Resources), unmarshal("update", b.Update, &b.Container.Update),
	)
	// Records from before UpdateContainerResources.
	if b.Resources == nil {
		b.Container.Resources = b.Container.Config.GetLinux().GetResources()
	}
	if b.Container.Config == nil {
		err = errors.Join(err, errNoConfig)
	}
	// As this daemon knows them, for keepUnknown.
	err = errors.Join(err, marshal(&b.Config, b.Container.Config), marshal(&b.User, b.Container.User),
		marshal(&b.Resources, b.Container.Resources), marshal(&b.Update, b.Container.Update))
	return b, errors.Join(err, checkID(id, b.ID))
}

func checkID(file, body string) error {
	if !pod.ValidID(file) || file != body {
		return fmt.Errorf("the record of %q is in a file named %q", body, file)
	}
	return nil
}

// marshal writes null for an absent message.
func marshal(out *json.RawMessage, m proto.Message) (err error) {
	if !m.ProtoReflect().IsValid() {
		*out = json.RawMessage("null")
		return nil
	}
	*out, err = protojson.Marshal(m)
	return err
}

// message is a pointer to a generated message type T.
type message[T any] interface {
	*T
	proto.Message
}

// unmarshal leaves what is absent, or null, nil. It takes fields of a newer API as
// absent: a record must load after a downgrade.
func unmarshal[T any, M message[T]](name string, data []byte, out *M) error {
	if len(data) == 0 || string(data) == "null" {
		return nil
	}
	*out = new(T)
	if err := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(data, *out); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}
