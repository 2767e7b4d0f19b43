/* The first process of a pod's shared PID namespace: it holds the namespace, reaps
 * what is orphaned in it, and ends when it is asked to. */
#define _GNU_SOURCE
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

int main(void)
{
	sigset_t all;
	int sig;

	sigfillset(&all);
	if (sigprocmask(SIG_SETMASK, &all, NULL) < 0)
		return 1;
	for (;;) {
		if (sigwait(&all, &sig) != 0)
			return 1;
		if (sig == SIGTERM || sig == SIGINT)
			return 0;
		while (waitpid(-1, NULL, WNOHANG) > 0)
			;
	}
}
