package pod

import (
	"fmt"
	"math"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Users is a user namespace: the IDs 0 to Length-1 inside are those from Host on of the
// node. The zero value is the node's own.
type Users struct{ UIDs, GIDs IDRange }

// IDRange is one line of /proc/<pid>/uid_map that begins with 0 (user_namespaces(7)).
type IDRange struct{ Host, Length uint32 }

// Private tells whether it is a user namespace of a pod's own.
func (u Users) Private() bool { return u != Users{} }

func (u Users) String() string {
	if !u.Private() {
		return "the node's"
	}
	return fmt.Sprintf("uids %d+%d, gids %d+%d", u.UIDs.Host, u.UIDs.Length, u.GIDs.Host, u.GIDs.Length)
}

// UsersOf reads NamespaceOption.userns_options. The node's own is told by nil, as by
// CRI-O and containerd, and by NODE. An error names the field.
func UsersOf(o *cri.NamespaceOption) (Users, error) {
	const field = "namespace_options.userns_options"
	options := o.GetUsernsOptions()
	switch {
	case options == nil:
		return Users{}, nil
	case options.GetMode() == cri.NamespaceMode_NODE && len(options.GetUids())+len(options.GetGids()) > 0:
		return Users{}, fmt.Errorf("%s: NODE has no mappings", field)
	case options.GetMode() == cri.NamespaceMode_NODE:
		return Users{}, nil
	case options.GetMode() != cri.NamespaceMode_POD:
		return Users{}, fmt.Errorf("%s.mode: %s is neither POD nor NODE", field, options.GetMode())
	}
	uids, err := idRange(field+".uids", options.GetUids())
	if err != nil {
		return Users{}, err
	}
	gids, err := idRange(field+".gids", options.GetGids())
	return Users{UIDs: uids, GIDs: gids}, err
}

// idRange takes exactly one mapping, and of ID 0: without a root inside there is nobody
// to whom the container's files could belong.
func idRange(field string, mappings []*cri.IDMapping) (IDRange, error) {
	if len(mappings) != 1 {
		return IDRange{}, fmt.Errorf("%s: %d mappings instead of one", field, len(mappings))
	}
	m := mappings[0]
	if m.GetContainerId() != 0 {
		return IDRange{}, fmt.Errorf("%s: container_id %d is not 0", field, m.GetContainerId())
	}
	return IDRange{Host: m.GetHostId(), Length: m.GetLength()}, CheckMapping(field, m)
}

// CheckMapping refuses what the kernel would: an empty range, and one that reaches the
// last ID, which means "no change" to chown(2).
func CheckMapping(field string, m *cri.IDMapping) error {
	if m.GetLength() == 0 {
		return fmt.Errorf("%s: length is 0", field)
	}
	for name, first := range map[string]uint32{"host_id": m.GetHostId(), "container_id": m.GetContainerId()} {
		if uint64(first)+uint64(m.GetLength()) > math.MaxUint32 {
			return fmt.Errorf("%s: %s %d and length %d go beyond the largest ID, %d", field, name, first, m.GetLength(), uint32(math.MaxUint32-1))
		}
	}
	return nil
}
