/* The loop: everything that can happen is a descriptor or a deadline. */
#define _GNU_SOURCE
#include "conmon.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <time.h>

enum {
	MAX_POLL = 12 + MAX_CLIENTS,
	READS = 4, /* of one stream, before the others and the rest have their turn */
	PIPE_READS = 1048576 / LINE_MAX_BYTES, /* of the largest pipe an unprivileged process may have (pipe(7)) */
	WORDS_READS = 1048576 / MAX_WORDS,
};

int conmon_init(struct conmon *m)
{
	int *unset[] = { &m->input.fd,	       &m->witness.fd,	  &m->pod_oom.fd,   &m->log.fd,
			 &m->container_oom.fd, &m->streams[0].fd, &m->streams[1].fd };

	for (size_t i = 0; i < sizeof unset / sizeof *unset; i++)
		*unset[i] = -1;
	/* From dir to stdio they lie together: all bits make -1. */
	memset((char *)m + offsetof(struct conmon, dir), 0xff,
	       offsetof(struct conmon, oom_score_adj) - offsetof(struct conmon, dir));
	m->buffers = mmap(NULL, sizeof *m->buffers, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (m->buffers == MAP_FAILED)
		return -errno;
	m->streams[0].name = "stdout";
	m->streams[0].attach = ATTACH_STDOUT;
	m->streams[1].name = "stderr";
	m->streams[1].attach = ATTACH_STDERR;
	for (size_t i = 0; i < 2; i++)
		m->streams[i].buf = m->buffers->stream[i];
	m->log.out = m->scratch = m->buffers->out;
	m->input.buf = m->buffers->input;
	return 0;
}

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
	for (int i = 0; i < READS && s->fd >= 0; i++) {
		char *end = s->buf + s->len;
		ssize_t n = read(s->fd, end, LINE_MAX_BYTES);

		if (n < 0 && (errno == EAGAIN || errno == EINTR))
			return;
		if (n <= 0) {
			/* EIO is how a pty says that its other side is closed. */
			end_stream(m, s);
			return;
		}
		if (m->n_attached)
			attach_output(m, s, end, (size_t)n);
		s->len += (size_t)n;
		log_stamp(&m->log, s->name, now_ns(CLOCK_REALTIME));
		m->used = m->used || s->len > PAGE;
		stream_frame(s, &m->log);
		m->used = m->used || m->log.spread;
		if (n < LINE_MAX_BYTES)
			return;
	}
}

/* What a dead container left is at most what its pipe holds: the deadline must not cut
 * that off, where the disk alone was slow. */
static void drain_rest(struct conmon *m, struct stream *s)
{
	for (int turns = 0; s->fd >= 0 && turns < PIPE_READS; turns++)
		take(m, s);
	end_stream(m, s);
}

/* Gives back whole pages of buf that hold nothing of its first len bytes. */
static void release(char *buf, size_t len, size_t size)
{
	size_t kept = (len + PAGE - 1) / PAGE * PAGE;

	if (madvise(buf + kept, size - kept, MADV_DONTNEED) < 0)
		return; /* larger pages than ours: they stay */
}

static void release_buffers(struct conmon *m)
{
	for (size_t i = 0; i < 2; i++)
		release(m->streams[i].buf, m->streams[i].len, sizeof m->buffers->stream[i]);
	release(m->log.out, 0, sizeof m->buffers->out);
	if (!m->input.len)
		release(m->buffers->input, 0, sizeof m->buffers->input);
	m->log.spread = false;
	m->used = false;
}

static bool kill_rest(struct conmon *m)
{
	bool lives = false;

	close_fd(&m->witness.fd);
	for (size_t i = 0; i < m->opt.n_kill; i++)
		if (cgroup_kill(m->opt.kill[i], &m->witness) > 0)
			lives = true;
	return lives;
}

/* The exit is known and everything written: tell it, by file first. */
static void finish(struct conmon *m, enum state s)
{
	m->state = s;
	m->recorded = record_write(m) == 0;
	attach_output_end(m);
	if (s == STATE_EXITED)
		proto_push_exit(m);
	else
		proto_push_failed(m);
	m->ack_until = now_ms() + ACK_MS;
}

static void undo(struct conmon *m)
{
	m->state = STATE_UNDOING;
	m->start_ns = 0;
	child_close_stdio(m);
	close_fd(&m->words_fd);
	close_fd(&m->console);
	(void)kill_rest(m); /* the runtime's delete waits for them */
	m->end_ns = now_ns(CLOCK_REALTIME);
	m->undo_until = now_ms() + DELETE_MS;
	if (child_delete(m) < 0)
		finish(m, STATE_FAILED);
}

static void fail_errno(struct conmon *m, const char *what, int r)
{
	struct text t = text_in(m->failure, sizeof m->failure);

	text_put(&t, "monitor: ");
	text_put(&t, what);
	text_put(&t, ": ");
	text_put(&t, strerror(-r));
	undo(m);
}

/* What the runtime has printed so far, or all of it when it has ended. It is never
 * left in its pipe, which it could fill. */
static void take_words(struct conmon *m, int *fd)
{
	for (int turns = 0; *fd >= 0 && turns < WORDS_READS; turns++) {
		int r = words_take(m, *fd);

		if (r < 0)
			close_fd(fd);
		if (r <= 0)
			return;
	}
}

/* The counters, before init is waited for: its group may vanish at any time. The pod's
 * alone may have moved for another container. It counts only where our own could not
 * be read to the end. */
static void see_end(struct conmon *m)
{
	bool read = counter_read(&m->container_oom);

	m->init_seen = true;
	m->oom = counter_moved(&m->container_oom);
	if (!read && m->opt.oom_file && counter_read(&m->pod_oom))
		m->pod_oom_moved = counter_moved(&m->pod_oom);
	close_fd(&m->container_oom.fd);
	close_fd(&m->pod_oom.fd);
}

/* While our own counter can be read, what moves the pod's is known to be ours or not:
 * it is not a witness of what comes later. */
static void attribute_pod_oom(struct conmon *m)
{
	if (counter_read(&m->pod_oom) && counter_read(&m->container_oom))
		m->pod_oom.base = m->pod_oom.last;
}

/* init is gone, and with it the container: what it left has no reason to live, and
 * would hold the output open. */
static void begin_end(struct conmon *m)
{
	int64_t now = now_ms();

	m->state = STATE_ENDING;
	if (m->pod_oom_moved && WIFSIGNALED(m->init_status) && WTERMSIG(m->init_status) == SIGKILL)
		m->oom = true;
	close_fd(&m->init_pidfd);
	close_fd(&m->tty_peer);
	m->left = kill_rest(m);
	m->kill_until = now + KILL_MS;
	m->drain_until = now + DRAIN_MS;
}

static void created(struct conmon *m)
{
	int r;

	/* What is in the pipes now is the runtime's; the container's program comes with
	 * start. */
	if (m->opt.tty) {
		if ((r = child_console(m)) < 0) {
			fail_errno(m, "terminal", r);
			return;
		}
	} else {
		take_words(m, &m->streams[0].fd);
		take_words(m, &m->streams[1].fd);
	}
	if ((r = child_created(m)) < 0) {
		fail_errno(m, "first process", r);
		return;
	}
	m->state = STATE_CREATED;
	m->start_ns = now_ns(CLOCK_REALTIME);
	if ((r = child_start(m)) < 0)
		fail_errno(m, "runtime start", r);
}

/* init's end as the runtime told it, or cannot tell: m->failure says why then. */
static void ended_elsewhere(struct conmon *m, int code)
{
	see_end(m);
	m->init_gone = true;
	m->init_status = code << 8; /* as of a process that exits with it (wait(2)) */
	m->end_ns = now_ns(CLOCK_REALTIME);
	begin_end(m);
}

static void runtime_done(struct conmon *m, int status)
{
	enum state s = m->state;
	int r;

	m->runtime = 0;
	if (s == STATE_RUNNING && m->opt.sandboxed) {
		take_words(m, &m->words_fd);
		close_fd(&m->words_fd);
		ended_elsewhere(m, words_verdict(m, status));
		return;
	}
	if (s == STATE_UNDOING) {
		finish(m, STATE_FAILED);
		return;
	}
	if (s != STATE_CREATING && s != STATE_CREATED)
		return;
	take_words(m, &m->words_fd);
	close_fd(&m->words_fd);
	if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) {
		if (s == STATE_CREATING) {
			take_words(m, &m->streams[0].fd);
			take_words(m, &m->streams[1].fd);
		}
		words_failure(m, s == STATE_CREATING ? "create" : "start", status);
		undo(m);
	} else if (s == STATE_CREATING) {
		created(m);
	} else if (m->opt.sandboxed && (r = child_wait(m)) < 0) {
		fail_errno(m, "runtime wait", r);
	} else {
		m->state = STATE_RUNNING;
		proto_push_started(m);
		if (m->init_gone)
			begin_end(m);
	}
}

/* Reaps everything: as a subreaper we get every orphan of the container too. init may
 * end before the runtime's start has returned; its end is then dealt with after that. */
static void reap(struct conmon *m)
{
	int status;
	pid_t pid;

	if (!m->init_seen && child_ended(m))
		see_end(m);
	while ((pid = waitpid(-1, &status, WNOHANG)) > 0) {
		if (pid == m->runtime) {
			runtime_done(m, status);
		} else if (pid == m->init && !m->init_gone) {
			if (!m->init_seen)
				see_end(m);
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
	struct text t = text_in(m->failure, sizeof m->failure);

	text_put(&t, "the exit code of process ");
	text_number(&t, m->init);
	text_put(&t, " is unknown: it was not the monitor's child");
	ended_elsewhere(m, 255);
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
	if (!m->deaf_until)
		watch(t, m->listener, POLLIN, &m->listener);
	watch(t, m->words_fd, POLLIN, &m->words_fd);
	if (m->state != STATE_UNDOING && m->state != STATE_FAILED) {
		watch(t, m->streams[0].fd, POLLIN, &m->streams[0]);
		watch(t, m->streams[1].fd, POLLIN, &m->streams[1]);
	}
	if (m->input.len)
		watch(t, attach_input_fd(m), POLLOUT, &m->input);
	if (!m->init_gone && m->state == STATE_RUNNING)
		watch(t, m->init_pidfd, POLLIN, &m->init_pidfd);
	if (m->left)
		watch(t, m->witness.fd, m->witness.events, &m->witness);
	if (m->container_oom.pollable)
		watch(t, m->container_oom.fd, POLLPRI, &m->container_oom);
	if (m->pod_oom.pollable)
		watch(t, m->pod_oom.fd, POLLPRI, &m->pod_oom);
	for (size_t i = 0; i < m->n_clients; i++)
		if (!attach_paused(m, &m->clients[i]))
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
		siginfo_t info;

		reap(m);
		if (m->init_gone)
			return;
		if (waitid(P_PID, (id_t)m->init, &info, WEXITED | WNOHANG | WNOWAIT) < 0 && errno == ECHILD)
			init_not_ours(m);
		else
			close_fd(&m->init_pidfd); /* its tracer waits first; then SIGCHLD comes */
	} else if (owner == &m->listener) {
		sock_accept(m);
	} else if (owner == &m->words_fd) {
		take_words(m, &m->words_fd);
	} else if (owner == &m->streams[0] || owner == &m->streams[1]) {
		struct stream *s = owner;

		/* What the runtime prints before the container runs is its error, if it fails. */
		if (m->state == STATE_CREATING)
			take_words(m, &s->fd);
		else
			take(m, s);
	} else if (owner == &m->input) {
		attach_feed(m);
	} else if (owner == &m->witness) {
		m->left = m->left && kill_rest(m);
	} else if (owner == &m->container_oom) {
		(void)counter_read(&m->container_oom);
	} else if (owner == &m->pod_oom) {
		attribute_pod_oom(m);
	} else {
		proto_request(m, owner);
	}
}

static int64_t sooner(int64_t a, int64_t b) { return !a || (b && b < a) ? b : a; }

/* Milliseconds to the next deadline; -1 for none. */
static int timeout(const struct conmon *m)
{
	int64_t until = m->deaf_until, now = now_ms();

	switch (m->state) {
	case STATE_ENDING:
		until = sooner(until, m->left ? m->kill_until : m->drain_until);
		if (m->left && m->witness.fd < 0)
			until = sooner(until, now + KILL_AGAIN_MS);
		break;
	case STATE_UNDOING: until = sooner(until, m->undo_until); break;
	case STATE_EXITED:
	case STATE_FAILED: until = sooner(until, m->ack_until); break;
	default:
		if (!until)
			return m->used ? RELEASE_MS : -1;
	}
	return until > now ? (int)(until - now) : 0;
}

/* What the end waits for besides events. */
static void advance_end(struct conmon *m, int64_t now)
{
	if (m->left) {
		if (m->witness.fd < 0)
			m->left = kill_rest(m);
		m->left = m->left && now < m->kill_until;
		if (m->left)
			return;
		close_fd(&m->witness.fd);
		m->drain_until = now + DRAIN_MS;
	}
	if (drained(m) || now >= m->drain_until) {
		drain_rest(m, &m->streams[0]);
		drain_rest(m, &m->streams[1]);
		finish(m, STATE_EXITED);
	}
}

/* What a state waits for besides events. Returns true when all is done. */
static bool advance(struct conmon *m)
{
	int64_t now = now_ms();

	if (m->deaf_until && now >= m->deaf_until)
		m->deaf_until = 0;
	if (m->state == STATE_ENDING)
		advance_end(m, now);
	if (m->state == STATE_UNDOING && now >= m->undo_until)
		finish(m, STATE_FAILED);
	if (!is_over(m))
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

void loop_run(struct conmon *m)
{
	struct table t;
	int r = child_create(m);

	if (r < 0)
		fail_errno(m, "runtime create", r);
	while (!advance(m)) {
		int n;

		build(m, &t);
		n = poll(t.poll, t.n, timeout(m));
		if (n < 0 && errno != EINTR) {
			/* Out of memory, or a limit below what is open. There is nobody to give
			 * up to: the end is still to be told. */
			(void)poll(NULL, 0, POLL_AGAIN_MS);
			reap(m);
		}
		if (n == 0 && m->used)
			release_buffers(m);
		for (nfds_t i = 0; n > 0 && i < t.n; i++)
			if (t.poll[i].revents)
				dispatch(m, t.owner[i]);
	}
}
