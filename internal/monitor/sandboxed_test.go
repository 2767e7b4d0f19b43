package monitor

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// sandboxRuntime is a runtime whose sandbox is the test itself: its start writes to the
// container's output, and its wait does what the text says.
func sandboxRuntime(t *testing.T, wait string) string {
	return wrapper(t, fmt.Sprintf(`
for id; do :; done
case " $* " in
*' create '*) while [ $# -gt 1 ]; do [ "$1" != --pid-file ] || echo %d > "$2"; shift; done;;
*' start '*) echo mine; echo trouble >&2;;
*' wait '*) %s;;
*' delete '*) ;;
*) echo "unknown: $*" >&2; exit 1;;
esac`, os.Getpid(), wait))
}

// Of a container in a sandbox the runtime's wait is the only witness: what it does not
// say clearly is not known.
func TestEndInASandboxIsWhatTheRuntimeTells(t *testing.T) {
	onBuilds(t, func(t *testing.T, conmon string) {
		for name, tt := range map[string]struct {
			wait string
			code int32
			says string
		}{
			"success":          {`echo "{\"id\":\"$id\",\"exitStatus\":0}"`, 0, ""},
			"a code":           {`sleep 0.2; echo "{\"id\":\"$id\",\"exitStatus\":137}"`, 137, ""},
			"words on stderr":  {`echo careful >&2; echo "{\"id\":\"$id\",\"exitStatus\":3}"`, 3, ""},
			"no such code":     {`echo "{\"id\":\"$id\",\"exitStatus\":256}"`, 255, "256"},
			"a negative code":  {`echo "{\"id\":\"$id\",\"exitStatus\":-1}"`, 255, "-1"},
			"more than that":   {`echo "{\"id\":\"$id\",\"exitStatus\":0}x"`, 255, "}x"},
			"half of it":       {`printf "{\"id\":\"$id\",\"exitStatus\":0"`, 255, "exitStatus"},
			"a word for it":    {`echo "{\"id\":\"$id\",\"exitStatus\":zero}"`, 255, "zero"},
			"nothing":          {`:`, 255, "runtime wait: no reason given"},
			"a failure":        {`echo "{\"id\":\"$id\",\"exitStatus\":0}"; exit 1`, 255, "runtime wait: "},
			"a violent end":    {`kill -9 $$`, 255, "killed by signal 9"},
			"a flood":          {`head -c 3000000 /dev/zero; echo end`, 255, "end"},
			"its log's reason": {`echo '{"level":"error","msg":"the sandbox has gone"}' > "$2"; exit 128`, 255, "runtime wait: the sandbox has gone"},
		} {
			t.Run(name, func(t *testing.T) {
				c := sh("").make(t, conmon)
				c.spec.Runtime, c.spec.Sandboxed = sandboxRuntime(t, tt.wait), true
				_, status := c.start(t)
				if status.Pid != 0 || status.StartedAt == 0 || status.State != Running {
					t.Errorf("status %+v", status)
				}
				if x := c.wait(t); x.Code != tt.code || x.Signal != 0 || x.OOM || !strings.Contains(x.Message, tt.says) || (tt.says == "") != (x.Message == "") {
					t.Errorf("got %+v", x)
				}
				if all := records(t, c.log); output(all, "stdout") != "mine\n" || output(all, "stderr") != "trouble\n" {
					t.Errorf("log %v", all)
				}
			})
		}
	})
}

// The process that the runtime names to the monitor is the sandbox: others live in it.
func TestSandboxIsNotSignalled(t *testing.T) {
	onBuilds(t, func(t *testing.T, conmon string) {
		c := sh("").make(t, conmon)
		done := t.TempDir() + "/done"
		c.spec.Runtime = sandboxRuntime(t, "while ! [ -e "+done+" ]; do sleep 0.02; done; echo \"{\\\"id\\\":\\\"$id\\\",\\\"exitStatus\\\":0}\"")
		c.spec.Sandboxed = true
		conn, _ := c.start(t)
		for _, sig := range []unix.Signal{unix.SIGCONT, unix.SIGKILL} {
			if err := conn.Kill(timeout(t), sig); !errors.Is(err, unix.ESRCH) {
				t.Errorf("signal %d: %v", sig, err)
			}
		}
		must(t, os.WriteFile(done, nil, 0o600))
		if x := c.wait(t); x.Code != 0 || x.Message != "" {
			t.Errorf("got %+v", x)
		}
	})
}

func TestStartInASandboxThatFailsIsTold(t *testing.T) {
	onBuilds(t, func(t *testing.T, conmon string) {
		c := sh("").make(t, conmon)
		c.spec.Sandboxed = true
		c.spec.Runtime = wrapper(t, `case " $* " in *' start '*) echo '{"level":"error","msg":"no room"}' > "$2"; exit 1;; esac
exec `+sandboxRuntime(t, ":")+` "$@"`)
		if text := c.startError(t); !strings.HasSuffix(text, "runtime start: no room") {
			t.Errorf("got %q", text)
		}
	})
}
