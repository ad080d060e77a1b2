/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The child: gives up its rights, runs the verb's sealed half, says how it ended. In: the job as it
 * was when the broker forked, its descriptors. Out: messages.
 */
#include "disk/sealed.h"

#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/close_range.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "base/fd.h"
#include "block/qcow2.h"
#include "disk/seal.h"

#define ASIDE 200 /* where descriptors are put meanwhile */

void block_closep(struct block_image **image)
{
	*image = block_close(*image);
}

/* A chain's opener: the broker does it. */
struct chain {
	struct block_opener opener;
	struct sealed *sealed;
	uint32_t file;
};

static int to_static_format(const char *text, size_t size, const char **ret_format)
{
	static const char *const formats[] = {"raw", "qcow2"};

	for (size_t i = 0; i < ARRAY_SIZE(formats); i++) {
		if (strlen(formats[i]) == size && !memcmp(formats[i], text, size)) {
			*ret_format = formats[i];
			return 0;
		}
	}
	return -EBADMSG;
}

static int ask(struct sealed *sealed, uint32_t file, bool writable, const char *name,
	       const char *format, const char **ret_format, struct error *err)
{
	struct link_message message;
	size_t n_fds = 0;
	int fd = -1;
	ssize_t n;
	int r = link_send_open(sealed->socket, file, writable, format, name);

	if (r == 0) {
		n = fd_receive(sealed->socket, sealed->message, LINK_MESSAGE_MAX, &fd, 1, &n_fds);
		r = n > 0 ? link_parse(sealed->message, (size_t)n, &message) : -EPIPE;
	}
	if (r == 0 && message.kind == LINK_OPENED && message.code < 0)
		return error_set(err, message.code, "%.*s", (int)message.text_size, message.text);
	if (r == 0 && (message.kind != LINK_OPENED || !n_fds))
		r = -EBADMSG;
	if (r == 0)
		r = to_static_format(message.text, message.text_size, ret_format);
	if (r < 0) {
		fd_close(fd);
		return error_set(err, r, "cannot ask for \"%s\": %s", name, strerror(-r));
	}
	return fd;
}

static int chain_open(struct block_opener *opener, const char *name, const char *format,
		      const char **ret_format, struct error *err)
{
	struct chain *chain = container_of(opener, struct chain, opener);

	return ask(chain->sealed, chain->file, false, name, format, ret_format, err);
}

static int open_fd(struct sealed *sealed, int fd, uint32_t file, const char *name,
		   const struct sealed_open *how, struct block_image **ret_image, struct error *err)
{
	struct chain chain = {{chain_open}, sealed, file};
	struct block_open open = {
		.format = how->format,
		.name = name,
		.opener = &chain.opener,
		.readonly = how->readonly,
		.no_lock = how->no_lock,
		.no_backing = !how->chain,
		.repair = how->repair,
	};

	return block_open(ret_image, fd, &open, err);
}

static int copy_of(int fd, const char *name, struct error *err)
{
	int copy = fcntl(fd, F_DUPFD_CLOEXEC, 3);

	return copy < 0 ? error_set(err, -errno, "cannot open \"%s\": %s", name, strerror(errno))
			: copy;
}

int sealed_image(struct sealed *sealed, uint32_t file, const struct sealed_open *how,
		 struct block_image **ret_image, struct error *err)
{
	const struct image_file *image_file = &sealed->job->files[file];
	int fd = copy_of(image_file->fd, image_file->name, err);

	return fd < 0 ? fd : open_fd(sealed, fd, file, image_file->name, how, ret_image, err);
}

int sealed_backing(struct sealed *sealed, uint32_t file, const char *name, const char *format,
		   struct block_image **ret_image, struct error *err)
{
	struct sealed_open how = {.chain = true};
	int fd = ask(sealed, file, true, name, format, &how.format, err);

	return fd < 0 ? fd : open_fd(sealed, fd, file, name, &how, ret_image, err);
}

int sealed_made(struct sealed *sealed, const char *format, struct block_image **ret_image,
		struct error *err)
{
	const struct made *made = &sealed->job->made;
	struct sealed_open how = {.format = format};
	int fd = copy_of(made->fd, made->name, err);

	return fd < 0 ? fd : open_fd(sealed, fd, 0, made->name, &how, ret_image, err);
}

int sealed_report(struct sealed *sealed, uint32_t which, const void *item, struct error *err)
{
	int r = link_send_item(sealed->socket, sealed->message, which,
			       sealed->job->verb->items[which], item);

	return r < 0 ? error_set(err, r, "cannot hand over what was found: %s", strerror(-r)) : 0;
}

int sealed_stopped(const struct sealed *sealed, struct error *err)
{
	if (!atomic_load_explicit(&sealed->page->stop, memory_order_relaxed))
		return 0;
	return error_set(err, -ECANCELED, "stopped before its end");
}

/*
 * Descriptors that are the job's move up in a row, the rest are closed: a Ctrl-C, a terminal or
 * another program's files are none of an image's business.
 */
static int keep(int *const *fds, size_t n)
{
	for (size_t i = 0; i < n; i++) {
		if (*fds[i] < 0)
			continue;
		*fds[i] = fcntl(*fds[i], F_DUPFD_CLOEXEC, ASIDE);
		if (*fds[i] < 0)
			return -errno;
	}
	if (close_range(STDERR_FILENO + 1, ASIDE - 1, 0) < 0)
		return -errno;
	for (size_t i = 0; i < n; i++) {
		if (*fds[i] < 0)
			continue;
		*fds[i] = fcntl(*fds[i], F_DUPFD_CLOEXEC, STDERR_FILENO + 1);
		if (*fds[i] < 0)
			return -errno;
	}
	return close_range(ASIDE, ~0u, 0) < 0 ? -errno : 0;
}

/* What an image may do to a terminal it may do only where somebody looks for a mistake. */
static void std_drop(const struct words *words)
{
	int null = open("/dev/null", O_RDWR | O_CLOEXEC);
	bool quiet = !words->verbose;

#ifdef CORRAL_SANITIZED
	quiet = false;
#endif
	if (null < 0) {
		close(STDIN_FILENO);
		close(STDOUT_FILENO);
		return;
	}
	dup2(null, STDIN_FILENO);
	dup2(null, STDOUT_FILENO);
	if (quiet)
		dup2(null, STDERR_FILENO);
	close(null);
}

static int drop_descriptors(struct sealed *sealed, int *empty_fd, struct error *err)
{
	struct job *job = sealed->job;
	int *fds[] = {&sealed->socket, empty_fd, &job->files[0].fd, &job->files[1].fd,
		      &job->made.fd};
	int r;

	std_drop(&job->words);
	r = keep(fds, ARRAY_SIZE(fds));
	return r < 0 ? error_set(err, r, "cannot close what is not needed: %s", strerror(-r)) : 0;
}

/* The one thing that is looked at before the seal, since it decides what to load: a bit and a byte
 * at a fixed place. */
static bool wants_zstd(int fd)
{
	struct qcow2_disk_header header;

	return fd >= 0 && pread(fd, &header, sizeof(header), 0) == sizeof(header) &&
	       be32toh(header.magic) == QCOW2_MAGIC &&
	       (be64toh(header.incompatible) & QCOW2_INCOMPATIBLE_COMPRESSION) &&
	       header.compression == QCOW2_ZSTD;
}

/* Libraries are files: they are loaded now, in case an image needs them. One that is missing is
 * missed when it does. */
static void load_libraries(const struct job *job)
{
	const struct words *words = &job->words;

	/* Who reads no clusters needs no zlib; zstd is asked for as an image is opened. */
	if (job->verb->crew)
		(void)!compress_load(QCOW2_ZLIB, NULL);
	if (words->allow_backing || wants_zstd(job->files[0].fd) || wants_zstd(job->files[1].fd) ||
	    (words->compression && !strcmp(words->compression, "zstd")))
		(void)!compress_load(QCOW2_ZSTD, NULL);
}

static int seal(struct sealed *sealed, int empty_fd, int parent, struct error *err)
{
	const struct disk_verb *verb = sealed->job->verb;
	struct seal_report report;
	char line[sizeof(report.done) + sizeof(report.missing) + 64];
	int r;

	load_libraries(sealed->job);
	r = seal_process(empty_fd, &report, err);
	if (r < 0)
		return r;
	/* After the change of user, at which the kernel forgets it. */
	if (prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0) < 0 || getppid() != parent)
		_exit(DISK_FAILED);
	fd_close(empty_fd);
	if (verb->crew)
		r = crew_new(&sealed->crew, err);
	if (r < 0)
		return r;
	r = seal_calls();
	if (r < 0)
		return error_set(err, r, "cannot bound system calls: %s", strerror(-r));
	snprintf(line, sizeof(line), "sealed: %s, system calls listed%s%s", report.done,
		 report.missing[0] ? "; this host does not let it have " : "", report.missing);
	r = link_send_text(sealed->socket, LINK_NOTE, 0, line, -1);
	return r < 0 ? error_set(err, r, "cannot reach the broker: %s", strerror(-r)) : 0;
}

/* Interrupts go to the broker, which says what is to be done. */
static void signals_ignore(void)
{
	static const int ignored[] = {SIGINT, SIGTERM, SIGHUP, SIGPIPE, SIGQUIT, SIGXFSZ};

	for (size_t i = 0; i < ARRAY_SIZE(ignored); i++)
		signal(ignored[i], SIG_IGN);
}

void sealed_main(struct job *job, int socket, struct link_page *page, int empty_fd, int parent)
{
	struct sealed sealed = {.job = job, .socket = socket, .page = page};
	struct error err = ERROR_NULL;
	int r;

	signals_ignore();
	sealed.message = malloc(LINK_MESSAGE_MAX);
	r = sealed.message ? drop_descriptors(&sealed, &empty_fd, &err)
			   : error_set(&err, -ENOMEM, "out of memory");
	if (r == 0)
		r = seal(&sealed, empty_fd, parent, &err);
	if (r == 0)
		r = job->verb->work(&sealed, &err);
	if (r < 0 && !err.text[0])
		error_set(&err, r, "cannot %s: %s", job->verb->name, strerror(-r));
	r = link_send_text(sealed.socket, r < 0 ? LINK_FAILED : LINK_DONE, r, err.text, -1);
	_exit(r < 0 ? DISK_FAILED : DISK_OK);
}
