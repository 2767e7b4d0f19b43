package main

import (
	"os"
	"strconv"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/crio-minimal/crio/pkg/config"
)

// Where the configuration is when no flag says so. The names are CRI-O's.
const (
	configFile    = "/etc/crio/crio.conf"
	configDir     = "/etc/crio/crio.conf.d"
	configFileEnv = "CONTAINER_CONFIG"
	configDirEnv  = "CONTAINER_CONFIG_DIR"
)

// flags are those of the files, and one for each key of the configuration. Variables
// are read by loadConfig and not by the cli library, which cannot tell them from flags.
func flags() []cli.Flag {
	all := []cli.Flag{
		&cli.StringFlag{Name: "config", Aliases: []string{"c"}, DefaultText: configFile, TakesFile: true,
			Usage: "Configuration file; it must exist when it is named." + envHint(configFileEnv)},
		&cli.StringFlag{Name: "config-dir", Aliases: []string{"d"}, DefaultText: configDir, TakesFile: true,
			Usage: "Directory whose *.conf files are read after it, in lexical order." + envHint(configDirEnv)},
	}
	for _, f := range config.Fields() {
		all = append(all, flag(f))
	}
	return all
}

const envHintStart = " [$"

func envHint(variable string) string { return envHintStart + variable + "]" }

func flag(f config.Field) cli.Flag {
	sentence, _, _ := strings.Cut(f.Doc, ". ")
	usage := strings.TrimSuffix(sentence, ".") + "." + envHint(f.Env)
	switch f.Kind {
	case config.Int:
		return &cli.Int64Flag{Name: f.Flag, Aliases: f.Aliases, Usage: usage, DefaultText: f.Default}
	case config.Bool:
		return &cli.BoolFlag{Name: f.Flag, Aliases: f.Aliases, Usage: usage, DefaultText: f.Default}
	case config.Duration:
		return &cli.DurationFlag{Name: f.Flag, Aliases: f.Aliases, Usage: usage, DefaultText: f.Default}
	case config.List:
		return &cli.StringSliceFlag{Name: f.Flag, Aliases: f.Aliases, Usage: usage, DefaultText: f.Default, TakesFile: f.Path}
	default:
		return &cli.StringFlag{Name: f.Flag, Aliases: f.Aliases, Usage: usage, DefaultText: f.Default, TakesFile: f.Path}
	}
}

// loadConfig merges the defaults, the files, the variables and the flags of c.
func loadConfig(c *cli.Context) (*config.Config, error) {
	src := config.Sources{File: configFile, Dir: configDir}
	if file := os.Getenv(configFileEnv); file != "" {
		src.File, src.FileRequired = file, true
	}
	if c.IsSet("config") {
		src.File, src.FileRequired = c.String("config"), true
	}
	if dir := os.Getenv(configDirEnv); dir != "" {
		src.Dir = dir
	}
	if c.IsSet("config-dir") {
		src.Dir = c.String("config-dir")
	}
	for _, f := range config.Fields() {
		switch value := os.Getenv(f.Env); {
		case c.IsSet(f.Flag):
			src.Overrides = append(src.Overrides, config.Override{Key: f.Key, Origin: "--" + f.Flag, Values: flagTexts(c, f)})
		case value != "" && f.Kind == config.List:
			src.Overrides = append(src.Overrides, config.Override{Key: f.Key, Origin: f.Env, Values: strings.Split(value, ",")})
		case value != "":
			src.Overrides = append(src.Overrides, config.Override{Key: f.Key, Origin: f.Env, Values: []string{value}})
		}
	}
	return config.Load(src)
}

func flagTexts(c *cli.Context, f config.Field) []string {
	switch f.Kind {
	case config.Int:
		return []string{strconv.FormatInt(c.Int64(f.Flag), 10)}
	case config.Bool:
		return []string{strconv.FormatBool(c.Bool(f.Flag))}
	case config.Duration:
		return []string{c.Duration(f.Flag).String()}
	case config.List:
		return c.StringSlice(f.Flag)
	default:
		return []string{c.String(f.Flag)}
	}
}

func configCommand() *cli.Command {
	return &cli.Command{
		Name:  "config",
		Usage: "print the merged configuration, with where each value comes from",
		Flags: []cli.Flag{&cli.BoolFlag{Name: "default", Usage: "print the defaults instead"}},
		Action: func(c *cli.Context) error {
			if c.Bool("default") {
				return config.Print(c.App.Writer, config.Default())
			}
			cfg, err := loadConfig(c)
			if err != nil {
				return err
			}
			return config.Print(c.App.Writer, cfg)
		},
	}
}
