/* `conmon exec PIDFILE SCORE RUNTIME ARGUMENT...`: runs a command in a container through the
 * runtime and ends with its exit code.
 *
 * The runtime is told to detach (its --detach and --pid-file are among the arguments):
 * one that stays beside the command waits for everybody who holds the command's
 * output, and so never ends when the command has left a daemon behind. The command
 * becomes our child instead, since we are a subreaper, and its end is the end. */
#define _GNU_SOURCE
#include "conmon.h"

#include <errno.h>
#include <signal.h>
#include <fcntl.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>

static int code_of(int status) { return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status); }

/* Waits for the runtime alone: a command that has ended already must not be taken for
 * one of its orphans. */
static int wait_for_runtime(pid_t pid, int *status)
{
	while (waitpid(pid, status, 0) < 0)
		if (errno != EINTR)
			return -errno;
	return 0;
}

/* Waits for the command. Others that end meanwhile are its orphans, which come to us
 * where the container has no PID namespace of its own. */
static int wait_for_command(pid_t pid, int *status)
{
	for (;;) {
		pid_t ended = waitpid(-1, status, 0);

		if (ended == pid)
			return 0;
		if (ended < 0 && errno != EINTR)
			return -errno;
	}
}

static pid_t read_pid(const char *path)
{
	char buf[32];
	cleanup_close int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t n = fd < 0 ? -1 : read(fd, buf, sizeof buf - 1);
	uint64_t pid;

	if (n <= 0)
		return -1;
	buf[n] = '\0';
	return parse_number(buf, NULL, &pid) == 0 && pid > 1 && pid <= INT_MAX ? (pid_t)pid : -1;
}

/* Gives a process the container's score, "" being none: crun's exec leaves it with ours,
 * which is the daemon's and may save it from the OOM killer, runc's with the one that the
 * container was made with. What we may not set stays. */
static void set_oom_score(const char *path, const char *score)
{
	cleanup_close int fd = score[0] ? open(path, O_WRONLY | O_CLOEXEC) : -1;

	if (fd >= 0 && write(fd, score, strlen(score)) < 0)
		return;
}

int exec_main(int argc, char **argv)
{
	const char *pid_file = argv[0], *score = argv[1];
	char path[64];
	struct text proc = text_in(path, sizeof path);
	pid_t runtime, command;
	int status;

	if (argc < 3 || prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) < 0)
		return 125;
	runtime = fork();
	if (runtime < 0)
		return 125;
	if (runtime == 0) {
		/* The daemon ends a command that takes too long by killing us first. */
		if (prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0) < 0)
			_exit(125);
		set_oom_score("/proc/self/oom_score_adj", score);
		execv(argv[2], argv + 2);
		_exit(127);
	}
	/* The command holds them now. Ours would keep its output open after its end, and its
	 * input after it has closed it. */
	close(0);
	close(1);
	close(2);
	if (wait_for_runtime(runtime, &status) < 0)
		return 125;
	if (code_of(status) != 0)
		return code_of(status); /* the runtime's log says why */
	command = read_pid(pid_file);
	if (command < 0)
		return 125;
	text_put(&proc, "/proc/");
	text_number(&proc, command);
	text_put(&proc, "/oom_score_adj");
	set_oom_score(path, score);
	if (wait_for_command(command, &status) < 0)
		return 125;
	return code_of(status);
}
