// Command crio is the daemon and its tools on one node. This package reads flags and
// the configuration, and puts the parts of the daemon together.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/crio-minimal/crio/internal/image"
	"github.com/crio-minimal/crio/internal/version"
)

func main() {
	// The storage library unpacks layers in children of this very program.
	if image.Reexec() {
		return
	}
	os.Exit(run(context.Background(), os.Args, os.Stdout, os.Stderr))
}

// run is main without the process: it returns the exit code. Errors are one line on stderr.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	app := newApp()
	app.Writer, app.ErrWriter = stdout, stderr
	err := app.RunContext(ctx, args)
	if err == nil {
		return 0
	}
	if text := strings.ReplaceAll(strings.TrimSpace(err.Error()), "\n", "; "); text != "" {
		fmt.Fprintf(stderr, "crio: %s\n", text)
	}
	var exit cli.ExitCoder
	if errors.As(err, &exit) {
		return exit.ExitCode()
	}
	return 1
}

func newApp() *cli.App {
	app := &cli.App{
		Name:    "crio",
		Usage:   "a minimal CRI daemon for Kubernetes " + version.KubernetesMinor,
		Version: version.Version,
		Description: "Without a command crio runs as the daemon. Flags come before the command, win over the files of the\n" +
			"configuration, and can be given as environment variables too. A flag for a list may be repeated;\n" +
			"in its variable commas separate the entries.",
		Flags:                     flags(),
		DisableSliceFlagSeparator: true, // entries such as overlay.mountopt=nodev,metacopy=on have commas
		Commands: []*cli.Command{
			configCommand(), versionCommand(), completionCommand(), statusCommand(), selftestCommand(),
		},
		Action: func(c *cli.Context) error {
			if c.Args().Present() {
				return fmt.Errorf("there is no command %q: see crio --help", c.Args().First())
			}
			cfg, err := loadConfig(c)
			if err != nil {
				return err
			}
			return daemonCommand(c.Context, cfg)
		},
		OnUsageError:   returnError,
		ExitErrHandler: func(*cli.Context, error) {},
	}
	returnErrors(app.Commands)
	return app
}

// returnErrors makes wrong flags an error like others, that run prints, instead of a
// page of help on stdout.
func returnErrors(commands []*cli.Command) {
	for _, c := range commands {
		c.OnUsageError, c.HideHelpCommand = returnError, true
		returnErrors(c.Subcommands)
	}
}

func returnError(_ *cli.Context, err error, _ bool) error { return err }
