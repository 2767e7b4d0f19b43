/* The loop: everything that can happen is a descriptor or a deadline. */
#define _GNU_SOURCE
#include "conmon.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <time.h>

enum {
	MAX_POLL = 8 + MAX_CLIENTS,
	PIPE_READS = 1048576 / LINE_MAX_BYTES, /* of the largest pipe an unprivileged process may have (pipe(7)) */
};

static bool drained(const struct conmon *m) { return m->streams[0].fd < 0 && m->streams[1].fd < 0; }

static void end_stream(struct conmon *m, struct stream *s)
{
	stream_flush(s, &m->log);
	close_fd(&s->fd);
}

/* Takes what there is, but leaves the loop its turn: one stream that never pauses
 * must not keep the others, or an exit, waiting. */
static void take(struct conmon *m, struct stream *s)
{
	if (s->fd >= 0 && !stream_read(s, &m->log))
		end_stream(m, s);
}

/* What a dead container left is at most what its pipe holds: the deadline must not cut
 * that off, where the disk alone was slow. */
static void drain_rest(struct conmon *m, struct stream *s)
{
	for (int reads = 0; s->fd >= 0 && reads < PIPE_READS; reads++)
		take(m, s);
}

static int kill_rest(struct conmon *m)
{
	int found = 0;

	for (size_t i = 0; i < m->opt.n_kill; i++) {
		int r = cgroup_kill(m->opt.kill[i]);

		found += r > 0 ? r : 0;
	}
	return found;
}

/* The exit is known and everything written: tell it, by file first. */
static void finish(struct conmon *m, enum state s)
{
	m->state = s;
	m->recorded = record_write(m) == 0;
	if (s == STATE_EXITED)
		proto_push_exit(m);
	else
		proto_push_failed(m);
	m->ack_until = now_ms() + ACK_MS;
}

static void undo(struct conmon *m)
{
	m->state = STATE_UNDOING;
	kill_rest(m);
	m->end_ns = now_ns(CLOCK_REALTIME);
	m->undo_until = now_ms() + DELETE_MS;
	if (child_delete(m) < 0)
		finish(m, STATE_FAILED);
}

static void fail(struct conmon *m, const char *stage, int status)
{
	child_failure_text(m, stage, status);
	undo(m);
}

static void fail_errno(struct conmon *m, const char *what, int r)
{
	snprintf(m->failure, sizeof m->failure, "monitor: %s: %s", what, strerror(-r));
	undo(m);
}

/* init is gone, and with it the container: what it left has no reason to live, and
 * would hold the output open. The counters first, since the group may vanish. */
static void begin_end(struct conmon *m)
{
	int64_t now = now_ms();

	m->state = STATE_ENDING;
	counter_read(&m->container_oom);
	counter_read(&m->pod_oom);
	/* The pod's counter alone may have moved for another container. It counts only
	 * where our own could not be read to the end, and init died of SIGKILL. */
	m->oom = counter_moved(&m->container_oom) ||
		 (m->container_oom.fd < 0 && m->opt.oom_file && counter_moved(&m->pod_oom) &&
		  WIFSIGNALED(m->init_status) && WTERMSIG(m->init_status) == SIGKILL);
	m->left = kill_rest(m) > 0;
	m->kill_until = now + KILL_MS;
	m->drain_until = now + DRAIN_MS;
}

static void runtime_done(struct conmon *m, int status)
{
	bool ok = WIFEXITED(status) && WEXITSTATUS(status) == 0;
	int r;

	m->runtime = 0;
	switch (m->state) {
	case STATE_CREATING:
		if (!ok) {
			fail(m, "create", status);
			return;
		}
		if (m->console >= 0 && (r = child_console(m)) < 0) {
			fail_errno(m, "terminal", r);
			return;
		}
		if ((r = child_created(m)) < 0) {
			fail_errno(m, "first process", r);
			return;
		}
		m->state = STATE_CREATED;
		m->start_ns = now_ns(CLOCK_REALTIME);
		if ((r = child_start(m)) < 0)
			fail_errno(m, "runtime start", r);
		return;
	case STATE_CREATED:
		if (!ok) {
			fail(m, "start", status);
			return;
		}
		m->state = STATE_RUNNING;
		proto_push_started(m);
		if (m->init_gone)
			begin_end(m);
		return;
	case STATE_UNDOING: finish(m, STATE_FAILED); return;
	default: return;
	}
}

/* Reaps everything: as a subreaper we get every orphan of the container too. init may
 * end before the runtime's start has returned; its end is then dealt with after that. */
static void reap(struct conmon *m)
{
	int status;
	pid_t pid;

	while ((pid = waitpid(-1, &status, WNOHANG)) > 0) {
		if (pid == m->runtime) {
			runtime_done(m, status);
		} else if (pid == m->init) {
			m->init_gone = true;
			m->init_status = status;
			m->end_ns = now_ns(CLOCK_REALTIME);
			if (m->state == STATE_RUNNING)
				begin_end(m);
		}
	}
}

/* A runtime that leaves its container to another parent leaves its exit code there too. */
static void init_not_ours(struct conmon *m)
{
	snprintf(m->failure, sizeof m->failure,
		 "the exit code of process %d is unknown: it was not the monitor's child", (int)m->init);
	m->init_gone = true;
	m->init_status = 255 << 8; /* as of a process that exits with 255 (wait(2)) */
	m->end_ns = now_ns(CLOCK_REALTIME);
	begin_end(m);
}

/* Both lists run in step: entry i of poll belongs to owner i. */
struct table {
	struct pollfd poll[MAX_POLL];
	void *owner[MAX_POLL];
	nfds_t n;
};

static void watch(struct table *t, int fd, short events, void *owner)
{
	if (fd < 0)
		return;
	t->poll[t->n] = (struct pollfd){ .fd = fd, .events = events };
	t->owner[t->n++] = owner;
}

/* Built anew each time from what is open: a closed descriptor cannot stay in it. */
static void build(struct conmon *m, struct table *t)
{
	t->n = 0;
	watch(t, m->signals, POLLIN, &m->signals);
	watch(t, m->listener, POLLIN, &m->listener);
	/* What the runtime prints before the container runs is its error, if it fails. */
	if (m->state != STATE_CREATING && m->state != STATE_UNDOING && m->state != STATE_FAILED) {
		watch(t, m->streams[0].fd, POLLIN, &m->streams[0]);
		watch(t, m->streams[1].fd, POLLIN, &m->streams[1]);
	}
	if (!m->init_gone && m->state == STATE_RUNNING)
		watch(t, m->init_pidfd, POLLIN, &m->init_pidfd);
	if (m->container_oom.pollable)
		watch(t, m->container_oom.fd, POLLPRI, &m->container_oom);
	for (size_t i = 0; i < MAX_CLIENTS; i++)
		watch(t, m->clients[i].fd, POLLIN, &m->clients[i]);
}

static void dispatch(struct conmon *m, void *owner)
{
	if (owner == &m->signals) {
		struct signalfd_siginfo info;

		/* The signals that came together are one to us: everything is reaped. */
		while (read(m->signals, &info, sizeof info) > 0)
			;
		reap(m);
	} else if (owner == &m->init_pidfd) {
		reap(m);
		if (!m->init_gone)
			init_not_ours(m);
	} else if (owner == &m->listener) {
		proto_accept(m);
	} else if (owner == &m->streams[0] || owner == &m->streams[1]) {
		take(m, owner);
	} else if (owner == &m->container_oom) {
		counter_read(&m->container_oom);
	} else {
		proto_request(m, owner);
	}
}

/* Milliseconds to the next deadline; -1 for none. */
static int timeout(const struct conmon *m)
{
	int64_t until = 0, now = now_ms();

	switch (m->state) {
	case STATE_ENDING: until = m->left ? now + KILL_AGAIN_MS : m->drain_until; break;
	case STATE_UNDOING: until = m->undo_until; break;
	case STATE_EXITED:
	case STATE_FAILED: until = m->ack_until; break;
	default: return -1;
	}
	return until > now ? (int)(until - now) : 0;
}

/* What a state waits for besides events. Returns true when all is done. */
static bool advance(struct conmon *m)
{
	int64_t now = now_ms();

	if (m->state == STATE_ENDING) {
		if (m->left) {
			m->left = kill_rest(m) > 0 && now < m->kill_until;
			if (!m->left)
				m->drain_until = now + DRAIN_MS;
		}
		if (!m->left && (drained(m) || now >= m->drain_until)) {
			drain_rest(m, &m->streams[0]);
			drain_rest(m, &m->streams[1]);
			end_stream(m, &m->streams[0]);
			end_stream(m, &m->streams[1]);
			finish(m, STATE_EXITED);
		}
	}
	if (m->state == STATE_UNDOING && now >= m->undo_until)
		finish(m, STATE_FAILED);
	if (m->state != STATE_EXITED && m->state != STATE_FAILED)
		return false;
	/* /run may be full. Then the end is nowhere but here: we stay until it has been
	 * written or taken. */
	if (!m->recorded && !m->told) {
		if (now >= m->ack_until) {
			m->recorded = record_write(m) == 0;
			m->ack_until = now + ACK_MS;
		}
		return m->recorded;
	}
	return proto_all_acked(m) || now >= m->ack_until;
}

int loop_run(struct conmon *m)
{
	struct table t;
	int r = child_create(m);

	if (r < 0)
		fail_errno(m, "runtime create", r);
	while (!advance(m)) {
		int n;

		build(m, &t);
		n = poll(t.poll, t.n, timeout(m));
		if (n < 0 && errno != EINTR)
			return -errno;
		for (nfds_t i = 0; n > 0 && i < t.n; i++)
			if (t.poll[i].revents)
				dispatch(m, t.owner[i]);
	}
	return 0;
}
