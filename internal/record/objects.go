package record

import (
	"encoding/json"
	"fmt"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crio-minimal/crio/internal/pod"
)

// The bodies shadow pod's values field by field where the value holds a protobuf
// message: encoding/json would write its internals. No field has omitempty, since
// a field that is missing would look unknown to keepUnknown.
type (
	sandboxBody struct {
		pod.Sandbox
		Config json.RawMessage
	}
	containerBody struct {
		pod.Container
		Config json.RawMessage
		User   json.RawMessage
	}
)

// Sandboxes are the records of the sandboxes.
type Sandboxes struct{ *Dir }

// Save writes the sandbox; durable where the next step is CNI ADD.
func (s Sandboxes) Save(value pod.Sandbox, durable Durable) error {
	config, err := marshal(value.Config)
	if err != nil {
		return fmt.Errorf("record %s: %w", value.ID, err)
	}
	return s.Dir.Save(value.ID, sandboxBody{Sandbox: value, Config: config}, durable)
}

// LoadAll returns every sandbox that can be read, and those that cannot.
func (s Sandboxes) LoadAll() ([]pod.Sandbox, []Broken, error) {
	var all []pod.Sandbox
	broken, err := s.Dir.LoadAll(func(id string, body []byte) (any, error) {
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
	b.Sandbox.Config = &cri.PodSandboxConfig{}
	if err := unmarshal(b.Config, b.Sandbox.Config); err != nil {
		return b, fmt.Errorf("config: %w", err)
	}
	return b, checkID(id, b.ID)
}

// Containers are the records of the containers.
type Containers struct{ *Dir }

// Save writes the container. It is never durable: Kubernetes does not reuse a
// container's layer after a crash of the node, so there is nothing to protect.
func (c Containers) Save(value pod.Container) error {
	config, err := marshal(value.Config)
	if err != nil {
		return fmt.Errorf("record %s: %w", value.ID, err)
	}
	user, err := marshal(value.User)
	if err != nil {
		return fmt.Errorf("record %s: %w", value.ID, err)
	}
	return c.Dir.Save(value.ID, containerBody{Container: value, Config: config, User: user}, false)
}

// LoadAll returns every container that can be read, and those that cannot.
func (c Containers) LoadAll() ([]pod.Container, []Broken, error) {
	var all []pod.Container
	broken, err := c.Dir.LoadAll(func(id string, body []byte) (any, error) {
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
	b.Container.Config = &cri.ContainerConfig{}
	if err := unmarshal(b.Config, b.Container.Config); err != nil {
		return b, fmt.Errorf("config: %w", err)
	}
	if string(b.User) != "null" {
		b.Container.User = &cri.LinuxContainerUser{}
		if err := unmarshal(b.User, b.Container.User); err != nil {
			return b, fmt.Errorf("user: %w", err)
		}
	}
	return b, checkID(id, b.ID)
}

func checkID(file, body string) error {
	if !pod.ValidID(file) || file != body {
		return fmt.Errorf("the record of %q is in a file named %q", body, file)
	}
	return nil
}

func marshal(m proto.Message) (json.RawMessage, error) {
	if !m.ProtoReflect().IsValid() {
		return json.RawMessage("null"), nil
	}
	return protojson.Marshal(m)
}

// unmarshal takes fields of a newer API as absent: a record must load after a downgrade.
func unmarshal(data []byte, m proto.Message) error {
	return protojson.UnmarshalOptions{DiscardUnknown: true}.Unmarshal(data, m)
}
