package main

import (
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/crio-minimal/crio/pkg/config"
)

func completionCommand() *cli.Command {
	shell := func(name string, write func(io.Writer, []completedCommand) error) *cli.Command {
		return &cli.Command{Name: name, Usage: "for " + name, Action: func(c *cli.Context) error {
			return write(c.App.Writer, completed(newApp()))
		}}
	}
	return &cli.Command{
		Name:        "completion",
		Usage:       "print the completion script of a shell: bash, zsh or fish",
		Subcommands: []*cli.Command{shell("bash", writeBash), shell("zsh", writeZsh), shell("fish", writeFish)},
		Action: func(c *cli.Context) error {
			return fmt.Errorf("completion: %q is no shell: name bash, zsh or fish", c.Args().First())
		},
	}
}

// completedCommand is what a shell can complete after a command; the first one of all
// has no name and stands for crio itself.
type completedCommand struct {
	name, usage string
	flags       []completedFlag
	words       []string // sub-commands
}

type completedFlag struct {
	names      []string // with dashes
	usage      string
	takesValue bool
	repeats    bool
	path       bool
	choices    []string
}

// completed reads commands and flags from the application itself. Two levels of
// commands are enough for it.
func completed(app *cli.App) []completedCommand {
	choices := map[string][]string{}
	for _, f := range config.Fields() {
		choices["--"+f.Flag] = f.Choices
	}
	root := completedCommand{flags: completedFlags(app.Flags)}
	for i, f := range root.flags {
		root.flags[i].choices = choices[f.names[0]]
	}
	root.flags = append(root.flags, completedFlag{names: []string{"--version", "-v"}, usage: "print the version"})
	commands := []completedCommand{root}
	for _, c := range app.Commands {
		if c.Hidden {
			continue
		}
		command := completedCommand{name: c.Name, usage: c.Usage, flags: completedFlags(c.Flags)}
		for _, sub := range c.Subcommands {
			command.words = append(command.words, sub.Name)
		}
		commands[0].words = append(commands[0].words, c.Name)
		commands = append(commands, command)
	}
	return commands
}

func completedFlags(flags []cli.Flag) []completedFlag {
	var all []completedFlag
	for _, f := range flags {
		entry := completedFlag{}
		for _, name := range f.Names() {
			entry.names = append(entry.names, "-"+strings.Repeat("-", min(1, len(name)-1))+name)
		}
		if doc, ok := f.(cli.DocGenerationFlag); ok {
			usage, _, _ := strings.Cut(doc.GetUsage(), envHintStart)
			// Backquotes mark the name of the value in the help.
			entry.usage = strings.ReplaceAll(strings.TrimSuffix(usage, "."), "`", "")
			entry.takesValue = doc.TakesValue()
		}
		switch f := f.(type) {
		case *cli.StringFlag:
			entry.path = f.TakesFile
		case *cli.StringSliceFlag:
			entry.path, entry.repeats = f.TakesFile, true
		}
		all = append(all, entry)
	}
	return append(all, completedFlag{names: []string{"--help", "-h"}, usage: "show help"})
}

// script collects the lines of a completion script.
type script struct{ strings.Builder }

func (s *script) line(format string, args ...any) { fmt.Fprintf(s, format+"\n", args...) }

func writeBash(w io.Writer, commands []completedCommand) error {
	var s script
	s.line("# bash completion for crio, made by: crio completion bash\n")
	s.line("_crio() {")
	s.line("    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]} command= words= i")
	s.line("    if [[ $cur == = ]]; then cur=; elif [[ $prev == = ]]; then prev=${COMP_WORDS[COMP_CWORD-2]}; fi")
	s.line("    for ((i = 1; i < COMP_CWORD; i++)); do")
	s.line("        case ${COMP_WORDS[i]} in")
	s.line("        %s) command=${COMP_WORDS[i]}; break ;;", strings.Join(commands[0].words, "|"))
	s.line("        %s) ((i++)) ;;", strings.Join(valueFlags(commands[0]), "|"))
	s.line("        esac")
	s.line("    done")
	s.line("    COMPREPLY=()")
	s.line("    case $command:$prev in")
	for _, c := range commands {
		for _, f := range c.flags {
			pattern := c.name + ":" + strings.Join(f.names, "|"+c.name+":")
			switch {
			case len(f.choices) > 0:
				s.line("    %s) mapfile -t COMPREPLY < <(compgen -W \"%s\" -- \"$cur\"); return ;;", pattern, strings.Join(f.choices, " "))
			case f.path:
				s.line("    %s) compopt -o filenames 2>/dev/null; mapfile -t COMPREPLY < <(compgen -f -- \"$cur\"); return ;;", pattern)
			case f.takesValue:
				s.line("    %s) return ;;", pattern)
			}
		}
	}
	s.line("    esac")
	s.line("    case $command in")
	for _, c := range commands {
		words := slices.Clone(c.words)
		for _, f := range c.flags {
			words = append(words, f.names...)
		}
		s.line("    \"%s\") words=\"%s\" ;;", c.name, strings.Join(words, " "))
	}
	s.line("    esac")
	s.line("    mapfile -t COMPREPLY < <(compgen -W \"$words\" -- \"$cur\")")
	s.line("}\n")
	s.line("complete -F _crio crio")
	_, err := io.WriteString(w, s.String())
	return err
}

// valueFlags are the flags after which a value follows.
func valueFlags(c completedCommand) []string {
	var names []string
	for _, f := range c.flags {
		if f.takesValue {
			names = append(names, f.names...)
		}
	}
	return names
}

func writeZsh(w io.Writer, commands []completedCommand) error {
	// A specification of _arguments is quoted once for it and once for the shell.
	quote := strings.NewReplacer(`\`, `\\`, `[`, `\[`, `]`, `\]`, `:`, `\:`, `'`, `'\''`)
	var s script
	s.line("#compdef crio")
	s.line("# zsh completion for crio, made by: crio completion zsh\n")
	s.line("_crio() {")
	s.line("    local curcontext=$curcontext state line")
	s.line("    typeset -A opt_args")
	specs := func(c completedCommand) {
		for _, f := range c.flags {
			action := ""
			switch {
			case len(f.choices) > 0:
				action = ":value:(" + quote.Replace(strings.Join(f.choices, " ")) + ")"
			case f.path:
				action = ":path:_files"
			case f.takesValue:
				action = ":value: "
			}
			for _, name := range f.names {
				if f.repeats {
					name = "*" + name
				}
				s.line("        '%s[%s]%s' \\", name, quote.Replace(f.usage), action)
			}
		}
	}
	s.line("    _arguments -C \\")
	specs(commands[0])
	s.line("        '1:command:->command' \\")
	s.line("        '*::argument:->argument' && return")
	s.line("    case $state in")
	s.line("    command)")
	s.line("        local -a commands=(")
	for _, c := range commands[1:] {
		s.line("            '%s:%s'", c.name, quote.Replace(c.usage))
	}
	s.line("        )")
	s.line("        _describe command commands")
	s.line("        ;;")
	s.line("    argument)")
	s.line("        case $line[1] in")
	for _, c := range commands[1:] {
		s.line("        %s)", c.name)
		s.line("            _arguments \\")
		specs(c)
		argument := " " // no arguments at all
		if len(c.words) > 0 {
			argument = "(" + strings.Join(c.words, " ") + ")"
		}
		s.line("        '1:argument:%s'", argument)
		s.line("            ;;")
	}
	s.line("        esac")
	s.line("        ;;")
	s.line("    esac")
	s.line("}\n")
	s.line("compdef _crio crio")
	s.line("# The first time that zsh loads this file by its name, the file is the function.")
	s.line("[[ $funcstack[1] == _crio ]] && _crio \"$@\"")
	_, err := io.WriteString(w, s.String())
	return err
}

func writeFish(w io.Writer, commands []completedCommand) error {
	quote := strings.NewReplacer(`\`, `\\`, `'`, `\'`)
	var s script
	s.line("# fish completion for crio, made by: crio completion fish\n")
	s.line("complete -c crio -f")
	for _, c := range commands {
		condition := "__fish_use_subcommand"
		if c.name != "" {
			s.line("complete -c crio -n __fish_use_subcommand -a %s -d '%s'", c.name, quote.Replace(c.usage))
			condition = "'__fish_seen_subcommand_from " + c.name + "'"
		}
		for _, word := range c.words {
			if c.name != "" {
				s.line("complete -c crio -n %s -a %s", condition, word)
			}
		}
		for _, f := range c.flags {
			var names strings.Builder
			for _, name := range f.names {
				if bare, long := strings.CutPrefix(name, "--"); long {
					names.WriteString(" -l " + bare)
				} else {
					names.WriteString(" -s " + name[1:])
				}
			}
			value := ""
			switch {
			case len(f.choices) > 0:
				value = " -x -a '" + quote.Replace(strings.Join(f.choices, " ")) + "'"
			case f.path:
				value = " -r -F"
			case f.takesValue:
				value = " -x"
			}
			s.line("complete -c crio -n %s%s%s -d '%s'", condition, names.String(), value, quote.Replace(f.usage))
		}
	}
	_, err := io.WriteString(w, s.String())
	return err
}
