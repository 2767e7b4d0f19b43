package pod

import (
	"strings"
	"testing"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestUsersOf(t *testing.T) {
	one := func(host, inside, length uint32) []*cri.IDMapping {
		return []*cri.IDMapping{{HostId: host, ContainerId: inside, Length: length}}
	}
	good := one(1000, 0, 10)
	const last = 1<<32 - 2
	for name, tt := range map[string]struct {
		options *cri.UserNamespace
		want    Users
		fails   string
	}{
		"nothing is the node's": {options: nil},
		"NODE is the node's":    {options: &cri.UserNamespace{Mode: cri.NamespaceMode_NODE}},
		"NODE with mappings":    {options: &cri.UserNamespace{Mode: cri.NamespaceMode_NODE, Gids: good}, fails: "NODE has no mappings"},
		"CONTAINER":             {options: &cri.UserNamespace{Mode: cri.NamespaceMode_CONTAINER, Uids: good, Gids: good}, fails: "userns_options.mode: CONTAINER"},
		"TARGET":                {options: &cri.UserNamespace{Mode: cri.NamespaceMode_TARGET, Uids: good, Gids: good}, fails: "userns_options.mode: TARGET"},
		"other lengths":         {options: &cri.UserNamespace{Uids: good, Gids: one(5, 0, 20)}, want: Users{IDRange{1000, 10}, IDRange{5, 20}}},
		"to the last":           {options: &cri.UserNamespace{Uids: one(last, 0, 1), Gids: one(0, 0, last+1)}, want: Users{IDRange{last, 1}, IDRange{0, last + 1}}},
		"beyond the last":       {options: &cri.UserNamespace{Uids: one(last, 0, 2), Gids: good}, fails: "userns_options.uids: host_id 4294967294"},
		"no uids":               {options: &cri.UserNamespace{Gids: good}, fails: "userns_options.uids: 0 mappings"},
		"two gids":              {options: &cri.UserNamespace{Uids: good, Gids: append(one(1, 0, 1), good...)}, fails: "userns_options.gids: 2 mappings"},
		"empty":                 {options: &cri.UserNamespace{Uids: good, Gids: one(1, 0, 0)}, fails: "userns_options.gids: length is 0"},
		"without a root":        {options: &cri.UserNamespace{Uids: one(1, 1, 1), Gids: good}, fails: "userns_options.uids: container_id 1"},
	} {
		got, err := UsersOf(&cri.NamespaceOption{UsernsOptions: tt.options})
		if tt.fails == "" && (err != nil || got != tt.want || got.Private() != (tt.want != Users{})) {
			t.Errorf("%s: %v, %v", name, got, err)
		}
		if tt.fails != "" && (err == nil || !strings.Contains(err.Error(), tt.fails)) {
			t.Errorf("%s: error %v, want %q", name, err, tt.fails)
		}
	}
	if err := CheckMapping("x", &cri.IDMapping{ContainerId: last, Length: 2}); err == nil || !strings.Contains(err.Error(), "container_id") {
		t.Errorf("a mapping that goes beyond the last ID inside: %v", err)
	}
}
