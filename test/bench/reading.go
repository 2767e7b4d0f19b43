package main

import (
	"context"
	"fmt"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// rowTime is enough for the samples of one list: there are calls that take seconds.
const rowTime = 20 * time.Second

// reading is a call that reads, and what it is measured against.
type reading struct {
	row         string
	call, floor func() error
}

// lists measures the calls that read pods and containers. Those that return what a client
// asks for by its ID are measured against Version, which reads nothing, lists against their
// messages, and counters against the kernel's files, too. all has an entry for each container.
func (b *bench) lists(ctx context.Context, d *daemon, all []*pod, pods, containers int) error {
	version := func() error { _, err := d.Version(ctx, &cri.VersionRequest{}); return err }
	list, boxes, of, ofPods, metrics := &message{}, &message{}, &message{}, &message{}, &message{}
	for _, c := range []struct {
		of    *message
		files func(int) []string
		whose whose
	}{{of, statFiles, whose{}}, {ofPods, statFiles, whose{pods: true}}, {metrics, counterFiles, whose{processes: true}}} {
		var err error
		if c.of.files, err = countersOf(b.tree.Version(), all, c.files, c.whose); err != nil {
			return err
		}
	}
	one := all[len(all)/2]
	ofContainers := fmt.Sprintf(" of %d", containers)
	ofThePods := fmt.Sprintf(" of %d", pods)
	if pods != containers {
		ofThePods += fmt.Sprintf(" pods with %d containers", containers)
	}
	return b.read(ctx, d, []reading{
		{"ListContainers" + ofContainers, func() (err error) {
			list.answer, err = d.ListContainers(ctx, &cri.ListContainersRequest{})
			return err
		}, list.tell},
		{"ListPodSandbox" + ofThePods, func() (err error) {
			boxes.answer, err = d.ListPodSandbox(ctx, &cri.ListPodSandboxRequest{})
			return err
		}, boxes.tell},
		{"ContainerStatus" + ofContainers, func() error {
			_, err := d.ContainerStatus(ctx, &cri.ContainerStatusRequest{ContainerId: one.container})
			return err
		}, version},
		{"PodSandboxStatus" + ofThePods, func() error {
			_, err := d.PodSandboxStatus(ctx, &cri.PodSandboxStatusRequest{PodSandboxId: one.box})
			return err
		}, version},
		{"Status beside" + ofThePods[len(" of"):], func() error { _, err := d.Status(ctx, &cri.StatusRequest{}); return err }, version},
		{"ListContainerStats" + ofContainers, func() (err error) {
			of.answer, err = d.ListContainerStats(ctx, &cri.ListContainerStatsRequest{})
			return err
		}, of.tell},
		{"ListPodSandboxStats" + ofThePods, func() (err error) {
			ofPods.answer, err = d.ListPodSandboxStats(ctx, &cri.ListPodSandboxStatsRequest{})
			return err
		}, ofPods.tell},
		{"ListPodSandboxMetrics" + ofThePods, func() (err error) {
			metrics.answer, err = d.ListPodSandboxMetrics(ctx, &cri.ListPodSandboxMetricsRequest{})
			return err
		}, metrics.tell},
	})
}

// read measures each of them, in turns with its floor where the daemon is the first.
func (b *bench) read(ctx context.Context, d *daemon, calls []reading) error {
	for _, c := range calls {
		enough := time.Now().Add(rowTime)
		for round := 0; round < b.rounds && (round == 0 || time.Now().Before(enough)); round++ {
			begun := time.Now()
			err := c.call()
			took := time.Since(begun)
			if status.Code(err) == codes.Unimplemented {
				b.note(c.row, "ms", d.name, "Unimplemented")
				break
			}
			if err != nil {
				return fmt.Errorf("%s: %w", c.row, err)
			}
			if d.name == b.Names[0] {
				begun = time.Now()
				if err := c.floor(); err != nil {
					return fmt.Errorf("%s: floor: %w", c.row, err)
				}
				b.took(c.row, floorName, time.Since(begun))
			}
			b.took(c.row, d.name, took)
		}
		if !d.tellsRuntime() {
			continue
		}
		if err := b.allocations(ctx, d, c.row, c.call); err != nil {
			return fmt.Errorf("%s: %w", c.row, err)
		}
	}
	return nil
}

// readImages measures the calls that read images. The images differ by their configuration
// alone; what the daemon has besides them is few.
func (b *bench) readImages(ctx context.Context) error {
	var refs []string
	files, err := rootFiles()
	if err != nil {
		return err
	}
	for i := range b.objects {
		ref, err := b.images.add(fmt.Sprint("image-", i), []layer{files}, "sh", fmt.Sprint(i))
		if err != nil {
			return err
		}
		refs = append(refs, ref)
	}
	for _, d := range b.daemons {
		pulled := 0
		for _, count := range []int{min(10, b.objects), min(100, b.objects), b.objects} {
			for ; pulled < count; pulled++ {
				if _, err := d.pull(ctx, refs[pulled]); err != nil {
					return fmt.Errorf("%s: pull %s: %w", d.name, refs[pulled], err)
				}
			}
			if err := b.imagesOf(ctx, d, refs[pulled/2], count); err != nil {
				return fmt.Errorf("%s: %w", d.name, err)
			}
		}
		for _, ref := range refs[:pulled] {
			if _, err := d.images.RemoveImage(ctx, &cri.RemoveImageRequest{Image: &cri.ImageSpec{Image: ref}}); err != nil {
				return fmt.Errorf("%s: remove %s: %w", d.name, ref, err)
			}
		}
	}
	return nil
}

func (b *bench) imagesOf(ctx context.Context, d *daemon, ref string, count int) error {
	list := &message{}
	return b.read(ctx, d, []reading{
		{fmt.Sprintf("ListImages of %d", count), func() (err error) {
			list.answer, err = d.images.ListImages(ctx, &cri.ListImagesRequest{})
			return err
		}, list.tell},
		{fmt.Sprintf("ImageStatus of %d", count), func() error {
			a, err := d.images.ImageStatus(ctx, &cri.ImageStatusRequest{Image: &cri.ImageSpec{Image: ref}})
			if err == nil && a.GetImage() == nil {
				err = fmt.Errorf("%s is not there", ref)
			}
			return err
		}, func() error { _, err := d.Version(ctx, &cri.VersionRequest{}); return err }},
	})
}
