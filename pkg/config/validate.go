package config

import (
	"errors"
	"fmt"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Validate checks every value against the rule tags and the values against each other.
// It touches no file. The error holds every problem; each names the key, the value,
// where the value comes from and what to write instead.
func (c *Config) Validate() error {
	all := leaves(tableName, reflect.ValueOf(c).Elem())
	for name, handler := range sortedHandlers(c) {
		all = append(all, leaves(handlerPrefix(name), reflect.ValueOf(handler).Elem())...)
	}
	var problems []error
	for _, l := range all {
		for rule := range strings.SplitSeq(l.tag.Get("rule"), ",") {
			if err := check(rule, l.value); err != nil {
				problems = append(problems, c.problem(l.key, err))
				break
			}
		}
	}
	return errors.Join(append(problems, c.validateTogether()...)...)
}

// problem adds the key, and where its value comes from unless nobody set it.
func (c *Config) problem(key string, err error) error {
	if origin := c.Origin(key); origin != originDefault {
		return fmt.Errorf("%s: %s: %w", origin, key, err)
	}
	return fmt.Errorf("%s: %w", key, err)
}

// handlerName is what can be a RuntimeClass handler and the name of a directory.
var handlerName = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$`)

// validateTogether has the rules that concern more than one value.
func (c *Config) validateTogether() []error {
	var problems []error
	for name := range sortedHandlers(c) {
		if !handlerName.MatchString(name) || len(name) > 63 {
			problems = append(problems, fmt.Errorf("crio.runtime.runtimes: %q is no name for a handler: use up to 63 letters, digits and any of ._- between them", name))
		}
	}
	if name := c.Runtime.DefaultRuntime; name != "" {
		if _, ok := c.Runtime.Runtimes[name]; !ok {
			problems = append(problems, c.problem("crio.runtime.default_runtime",
				fmt.Errorf("%q has no table: add [%s] or name one that has", name, handlerPrefix(name))))
		}
	}
	if a := c.API; a.StreamEnableTLS && (a.StreamTLSCert == "" || a.StreamTLSKey == "") {
		problems = append(problems, c.problem("crio.api.stream_enable_tls", errors.New("needs stream_tls_cert and stream_tls_key: set both")))
	}
	for _, pair := range []struct{ key, other, a, b string }{
		{"crio.runroot", "crio.root", c.RunRoot, c.Root},
		{"crio.run_dir", "crio.state_dir", c.RunDir, c.StateDir},
	} {
		if pair.a != "" && filepath.Clean(pair.a) == filepath.Clean(pair.b) {
			problems = append(problems, c.problem(pair.key,
				fmt.Errorf("%q is %s too: use two directories, since only this one may be lost at a reboot", pair.a, pair.other)))
		}
	}
	return problems
}

// check holds a value to one rule. For a list the rule is meant for each entry, except
// for "required". Empty texts pass every rule but "required".
func check(rule string, v reflect.Value) error {
	name, argument, _ := strings.Cut(rule, "=")
	if name == "required" {
		if v.Len() == 0 {
			return errors.New("is empty: give it a value, or remove the line to get the default")
		}
		return nil
	}
	switch kindOf(v.Type()) {
	case Int, Duration:
		return checkNumber(name, v.Int(), v.Interface())
	case Bool:
		return nil
	case List:
		for i := range v.Len() {
			if err := checkText(name, argument, v.Index(i).String()); err != nil {
				return err
			}
			if v.Index(i).Len() == 0 {
				return fmt.Errorf("entry %d is empty: remove it", i+1)
			}
		}
		return nil
	default:
		return checkText(name, argument, v.String())
	}
}

// What the numbers may be at least; CRI-O has the same bounds.
const (
	minLogSize       = 8192 // bytes
	minCreateTimeout = 30   // seconds
)

func checkNumber(rule string, n int64, shown any) error {
	switch {
	case rule == "positive" && n <= 0:
		return fmt.Errorf("%v is too small: use at least 1", shown)
	case rule == "nonnegative" && n < 0:
		return fmt.Errorf("%v is negative: use 0 or more", shown)
	case rule == "limit" && n < -1:
		return fmt.Errorf("%v is no limit: use -1 for none", shown)
	case rule == "logsize" && n < minLogSize && n != -1:
		return fmt.Errorf("%v is too small: use -1 for no limit, or at least %d bytes", shown, minLogSize)
	case rule == "createtimeout" && n < minCreateTimeout:
		return fmt.Errorf("%v is too short: use at least %d seconds", shown, minCreateTimeout)
	}
	return nil
}

var (
	capabilityName = regexp.MustCompile(`^[A-Z][A-Z_]*$`)
	sysctlName     = regexp.MustCompile(`^[A-Za-z0-9_-]+([./][A-Za-z0-9_-]+)+$`)
)

func checkText(rule, argument, s string) error {
	if strings.ContainsRune(s, 0) {
		return fmt.Errorf("%q has a NUL byte: remove it", s)
	}
	if s == "" {
		return nil
	}
	name, value, assigned := strings.Cut(s, "=")
	switch rule {
	case "abs":
		if !filepath.IsAbs(s) {
			return fmt.Errorf("%q is no absolute path: let it begin with /", s)
		}
	case "port":
		if _, err := strconv.ParseUint(s, 10, 16); err != nil {
			return fmt.Errorf("%q is no port: use a number from 0 to 65535", s)
		}
	case "duration":
		if d, err := time.ParseDuration(s); err != nil || d < 0 {
			return fmt.Errorf("%q is no duration: write it as in 30s, 5m or 4h", s)
		}
	case "oneof":
		if choices := strings.Fields(argument); !slices.Contains(choices, s) {
			return fmt.Errorf("%q is not served: use %s", s, strings.Join(choices, ", "))
		}
	case "env":
		if !assigned || name == "" {
			return fmt.Errorf("%q is not of the form NAME=value", s)
		}
	case "sysctl":
		if !assigned || !sysctlName.MatchString(name) {
			return fmt.Errorf("%q is not of the form name=value, such as net.ipv4.ip_forward=1", s)
		}
	case "capability":
		if !capabilityName.MatchString(s) {
			return fmt.Errorf("%q is no capability: write it as in capabilities(7), such as NET_RAW", s)
		}
	case "ulimit":
		return checkUlimit(s, name, value)
	}
	return nil
}

func checkUlimit(s, name, value string) error {
	// The resources of getrlimit(2).
	known := strings.Fields("as core cpu data fsize locks memlock msgqueue nice nofile nproc rss rtprio rttime sigpending stack")
	if !slices.Contains(known, name) {
		return fmt.Errorf("%q names no limit: use one of %s", s, strings.Join(known, ", "))
	}
	softText, hardText, two := strings.Cut(value, ":")
	if !two {
		hardText = softText
	}
	soft, err1 := limitValue(softText)
	hard, err2 := limitValue(hardText)
	if err := errors.Join(err1, err2); err != nil {
		return fmt.Errorf("%q is not of the form name=soft:hard, such as nofile=1024:4096", s)
	}
	if soft > hard {
		return fmt.Errorf("%q has a soft limit over the hard one: lower it", s)
	}
	return nil
}

// limitValue reads a number; -1 is RLIM_INFINITY (getrlimit(2)).
func limitValue(s string) (uint64, error) {
	if s == "-1" {
		return ^uint64(0), nil
	}
	return strconv.ParseUint(s, 10, 64)
}
