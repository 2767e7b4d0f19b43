package test

import (
	"encoding/json"
	"reflect"
	"slices"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crio-minimal/crio/internal/cgroup"
)

func conformRuntimeCases() []conformCase {
	return []conformCase{
		{
			name: "versions", run: conformVersion,
			proves: []string{
				"Version", "VersionRequest.version", "VersionResponse.version", "VersionResponse.runtime_name", "VersionResponse.runtime_version",
				"VersionResponse.runtime_api_version",
			},
		},
		{
			name: "status of the runtime", run: conformStatus,
			proves: []string{
				"Status", "StatusRequest.verbose", "StatusResponse.status", "StatusResponse.info", "StatusResponse.runtime_handlers",
				"StatusResponse.features", "RuntimeStatus.conditions", "RuntimeCondition.type", "RuntimeCondition.status", "RuntimeHandler.name",
				"RuntimeHandler.features", "RuntimeHandlerFeatures.recursive_read_only_mounts", "RuntimeFeatures.supplemental_groups_policy",
				"RuntimeFeatures.mount_options", "RuntimeConfig", "RuntimeConfigResponse.linux", "LinuxRuntimeConfiguration.cgroup_driver",
			},
		},
		{
			name: "addresses of the node's pods", run: conformPodCIDR,
			proves:  []string{"UpdateRuntimeConfig", "UpdateRuntimeConfigRequest.runtime_config", "RuntimeConfig.network_config", "NetworkConfig.pod_cidr"},
			refuses: []string{"NetworkConfig.pod_cidr"},
		},
		{name: "calls that are not served", run: conformLater},
	}
}

// later are the calls that this version does not serve; TestUnservedCalls sees each
// of them answer Unimplemented.
var later = []string{
	"CheckpointContainer", "CheckpointPod", "RestorePod",
}

func conformVersion(c *conform) {
	for _, asked := range []string{"", "v1", "0.1.0"} {
		v, err := c.Version(c.ctx(), &cri.VersionRequest{Version: asked})
		if err != nil || v.GetVersion() != "0.1.0" || v.GetRuntimeName() != "cri-o" || !strings.HasPrefix(v.GetRuntimeVersion(), "1.37.") || v.GetRuntimeApiVersion() != "v1" {
			c.t.Errorf("asked %q: %v, %v", asked, v, err)
		}
	}
}

func conformStatus(c *conform) {
	s, err := c.Status(c.ctx(), &cri.StatusRequest{Verbose: true})
	if err != nil {
		c.t.Fatal(err)
	}
	ready := map[string]bool{}
	for _, condition := range s.GetStatus().GetConditions() {
		ready[condition.GetType()] = condition.GetStatus()
	}
	if !ready[cri.RuntimeReady] || !ready[cri.NetworkReady] {
		c.t.Errorf("conditions %v", s.GetStatus())
	}
	for name, text := range s.GetInfo() {
		if !json.Valid([]byte(text)) {
			c.t.Errorf("info %s is %s", name, text)
		}
	}
	var names []string
	for _, h := range s.GetRuntimeHandlers() {
		names = append(names, h.GetName())
		// Both runtimes of the suite can do it, on this kernel: the mounts case uses it.
		if !h.GetFeatures().GetRecursiveReadOnlyMounts() {
			c.t.Errorf("handler %v", h)
		}
	}
	if !slices.Equal(names, []string{"", "crun", "runc"}) {
		c.t.Errorf("handlers %q", names)
	}
	if f := s.GetFeatures(); !f.GetSupplementalGroupsPolicy() || !f.GetMountOptions() {
		c.t.Errorf("features %v", f)
	}
	if plain, err := c.Status(c.ctx(), &cri.StatusRequest{}); err != nil || len(s.GetInfo()) == 0 || len(plain.GetInfo()) != 0 {
		c.t.Errorf("info %v, and %v without verbose, %v", s.GetInfo(), plain.GetInfo(), err)
	}
	driver := cri.CgroupDriver_CGROUPFS
	if cgroupManager() == cgroup.Systemd {
		driver = cri.CgroupDriver_SYSTEMD
	}
	if r, err := c.RuntimeConfig(c.ctx(), &cri.RuntimeConfigRequest{}); err != nil || r.GetLinux().GetCgroupDriver() != driver {
		c.t.Errorf("runtime config %v, %v", r, err)
	}
}

func (c *conform) setPodCIDR(cidr string) error {
	_, err := c.UpdateRuntimeConfig(c.ctx(), &cri.UpdateRuntimeConfigRequest{
		RuntimeConfig: &cri.RuntimeConfig{NetworkConfig: &cri.NetworkConfig{PodCidr: cidr}},
	})
	return err
}

// Without a template the value is told and nothing else; TestPodCIDRMakesTheNetwork has one.
func conformPodCIDR(c *conform) {
	for _, cidr := range []string{"10.9.0.0/24,fd00:9::/64", "", "10.9.0.0/24"} {
		if err := c.setPodCIDR(cidr); err != nil {
			c.t.Errorf("%q: %v", cidr, err)
		}
	}
	s, err := c.Status(c.ctx(), &cri.StatusRequest{Verbose: true})
	if err != nil || !strings.Contains(s.GetInfo()["network"], `"podCIDR":"10.9.0.0/24"`) {
		c.t.Errorf("%v, %v", s.GetInfo(), err)
	}
	c.refused(c.setPodCIDR("10.9.0.0"), codes.InvalidArgument, "pod_cidr", "10.9.0.0")
}

// conformLater calls what this version does not serve.
func conformLater(c *conform) {
	services := map[string]reflect.Value{"runtime": reflect.ValueOf(c.RuntimeServiceClient), "image": reflect.ValueOf(c.images)}
	for _, name := range later {
		method := services["runtime"].MethodByName(name)
		if !method.IsValid() {
			method = services["image"].MethodByName(name)
		}
		request := reflect.New(method.Type().In(1).Elem())
		out := method.Call([]reflect.Value{reflect.ValueOf(c.ctx()), request})
		err, _ := out[1].Interface().(error)
		if stream, ok := out[0].Interface().(grpc.ClientStream); ok && err == nil {
			err = stream.RecvMsg(nil)
		}
		c.refused(err, codes.Unimplemented, name)
	}
}
