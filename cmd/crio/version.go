package main

import (
	"encoding/json"
	"fmt"
	"runtime"

	"github.com/urfave/cli/v2"

	"github.com/crio-minimal/crio/internal/version"
)

func versionCommand() *cli.Command {
	return &cli.Command{
		Name:  "version",
		Usage: "print the version, and the Kubernetes and CRI versions that it is for",
		Flags: []cli.Flag{&cli.BoolFlag{Name: "json", Aliases: []string{"j"}, Usage: "print JSON"}},
		Action: func(c *cli.Context) error {
			// The JSON names are part of the command's interface.
			info := struct {
				Version    string `json:"version"`
				GitCommit  string `json:"gitCommit"`
				Kubernetes string `json:"kubernetes"`
				CRI        string `json:"cri"`
				CRIAPI     string `json:"criApi"`
				GoVersion  string `json:"goVersion"`
			}{version.Version, version.Commit(), version.KubernetesMinor, version.CRI, version.CRIAPI, runtime.Version()}
			if c.Bool("json") {
				out := json.NewEncoder(c.App.Writer)
				out.SetIndent("", "  ")
				return out.Encode(info)
			}
			_, err := fmt.Fprintf(c.App.Writer, "Version:     %s\nGit commit:  %s\nKubernetes:  %s\nCRI:         %s (k8s.io/cri-api %s)\nGo:          %s\n",
				info.Version, info.GitCommit, info.Kubernetes, info.CRI, info.CRIAPI, info.GoVersion)
			return err
		},
	}
}
