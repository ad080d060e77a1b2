/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Runs command lines as a user would. Nothing sleeps; a test's own deadline stands behind all.
 */
#include "disk/test-disk.h"

#include <criterion/criterion.h>
#include <dirent.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/fd.h"

#define LINE_MAX_ 8192

void site_init(struct site *site)
{
	cr_assert(getenv("CORRAL_DISK"), "CORRAL_DISK is not set");
	setenv("D", getenv("CORRAL_DISK"), true);
	setenv("ASAN_OPTIONS", "detect_leaks=1", false);
	strcpy(site->dir, "/tmp/corral-disk-test-XXXXXX");
	cr_assert(mkdtemp(site->dir) != NULL);
}

void site_deinit(struct site *site)
{
	char command[128];

	snprintf(command, sizeof(command), "rm -rf --one-file-system '%s'", site->dir);
	cr_assert(system(command) == 0);
}

static void read_text(const struct site *site, const char *name, char text[TEXT_MAX])
{
	char path[128];
	ssize_t n;
	int fd;

	snprintf(path, sizeof(path), "%s/%s", site->dir, name);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	n = fd < 0 ? 0 : read(fd, text, TEXT_MAX - 1);
	text[MAX(n, (ssize_t)0)] = '\0';
	fd_close(fd);
	unlink(path);
}

static void redirect(const char *name, int target)
{
	int fd = open(name, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

	if (fd < 0 || dup2(fd, target) < 0)
		_exit(125);
}

/* In the child. `out`: its standard output, -1: a file. */
static _Noreturn void child(const struct site *site, const char *line, int out)
{
	int null = open("/dev/null", O_RDONLY);

	if (chdir(site->dir) < 0 || null < 0 || dup2(null, STDIN_FILENO) < 0)
		_exit(125);
	if (out >= 0)
		dup2(out, STDOUT_FILENO);
	else
		redirect(".out", STDOUT_FILENO);
	redirect(out >= 0 ? ".err-started" : ".err", STDERR_FILENO);
	execl("/bin/sh", "sh", "-c", line, NULL);
	_exit(126);
}

int end_of(pid_t pid)
{
	int status;

	cr_assert_eq(waitpid(pid, &status, 0), pid);
	return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}

static int run_line(struct site *site, const char *line)
{
	pid_t pid = fork();

	if (pid == 0)
		child(site, line, -1);
	site->status = end_of(pid);
	read_text(site, ".out", site->out);
	read_text(site, ".err", site->err);
	return site->status;
}

#define FORMAT_LINE(line, format)                                                \
	do {                                                                     \
		va_list list;                                                    \
		va_start(list, format);                                          \
		cr_assert(vsnprintf(line, LINE_MAX_, format, list) < LINE_MAX_); \
		va_end(list);                                                    \
	} while (0)

int run(struct site *site, const char *format, ...)
{
	char line[LINE_MAX_];

	FORMAT_LINE(line, format);
	return run_line(site, line);
}

void ok(struct site *site, const char *format, ...)
{
	char line[LINE_MAX_];

	FORMAT_LINE(line, format);
	run_line(site, line);
	cr_assert_eq(site->status, 0, "%s\nended with %d: %.2000s%.2000s", line, site->status,
		     site->err, site->out);
}

void refused(struct site *site, int status, const char *part, const char *format, ...)
{
	char line[LINE_MAX_];

	FORMAT_LINE(line, format);
	run_line(site, line);
	cr_assert_eq(site->status, status, "%s\nended with %d: %.2000s%.2000s", line, site->status,
		     site->err, site->out);
	cr_assert(has(site->err, part), "%s\nsaid \"%s\", not \"%s\"", line, site->err, part);
}

pid_t start(struct site *site, int *ret_out, const char *format, ...)
{
	char line[LINE_MAX_] = "exec ";
	int pair[2];
	pid_t pid;
	va_list list;

	va_start(list, format);
	vsnprintf(line + 5, sizeof(line) - 5, format, list);
	va_end(list);
	cr_assert(pipe2(pair, O_CLOEXEC) == 0);
	pid = fork();
	if (pid == 0)
		child(site, line, pair[1]);
	close(pair[1]);
	*ret_out = pair[0];
	return pid;
}

json_t *answer(const struct site *site)
{
	json_error_t error;
	json_t *json = json_loads(site->out, JSON_REJECT_DUPLICATES, &error);

	cr_assert(json, "no JSON (%s): %s", error.text, site->out);
	return json;
}

json_int_t number(const json_t *json, const char *key)
{
	const json_t *value = json_object_get(json, key);

	cr_assert(json_is_integer(value), "no number \"%s\"", key);
	return json_integer_value(value);
}

bool has(const char *text, const char *part)
{
	return strstr(text, part);
}

int strangers(const struct site *site, const char *known)
{
	DIR *dir = opendir(site->dir);
	struct dirent *entry;
	char word[300];
	int n = 0;

	cr_assert(dir);
	while ((entry = readdir(dir))) {
		snprintf(word, sizeof(word), " %s ", entry->d_name);
		if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0 &&
		    strncmp(entry->d_name, ".err", 4) != 0 && !strstr(known, word)) {
			cr_log_info("left: %s", entry->d_name);
			n++;
		}
	}
	closedir(dir);
	return n;
}

void scribble(struct site *site, const char *file, const char *format, uint64_t size,
	      unsigned int seed)
{
	static const uint64_t grains[] = {512, 4096, 65536};
	char line[LINE_MAX_];
	size_t used = (size_t)snprintf(line, sizeof(line), "qemu-io -f %s", format);

	srandom(seed);
	for (int i = 0; i < 24; i++) {
		uint64_t grain = grains[random() % 3];
		uint64_t length = grain * (1 + (uint64_t)random() % 40);
		uint64_t offset = (uint64_t)random() % (size / grain) * grain;
		long what = random() % 8;

		length = MIN(length, size - offset);
		if (what < 5)
			used += (size_t)snprintf(line + used, sizeof(line) - used,
						 " -c 'write -P %ld %lu %lu'", 1 + random() % 255,
						 offset, length);
		else
			used += (size_t)snprintf(line + used, sizeof(line) - used,
						 " -c '%s %lu %lu'",
						 what == 5   ? "write -z"
						 : what == 6 ? "write -P 0"
							     : "discard",
						 offset, length);
	}
	ok(site, "%s %s >/dev/null", line, file);
}

void pieces(struct site *site, const char *file, int n)
{
	static const char data[4096] = "data";
	char path[128];
	int fd;

	snprintf(path, sizeof(path), "%s/%s", site->dir, file);
	fd = open(path, O_WRONLY | O_CLOEXEC);
	cr_assert(fd >= 0);
	for (int i = 0; i < n; i++)
		cr_assert_eq(pwrite(fd, data, sizeof(data), (off_t)i * 8192), sizeof(data));
	close(fd);
}

/* One range as both tools can say it. */
struct range {
	uint64_t start, length, place;
	json_int_t depth;
	bool data, placed;
};

static bool joins(const struct range *a, const struct range *b)
{
	if (a->data != b->data || a->placed != b->placed || a->start + a->length != b->start)
		return false;
	return !a->data ||
	       (a->depth == b->depth && (!a->placed || a->place + a->length == b->place));
}

static size_t add_range(struct range *ranges, size_t n, const struct range *next)
{
	if (n && joins(&ranges[n - 1], next)) {
		ranges[n - 1].length += next->length;
		return n;
	}
	ranges[n] = *next;
	return n + 1;
}

static struct range of_ours(const json_t *json)
{
	const char *kind = json_string_value(json_object_get(json, "kind"));
	struct range range = {
		.start = (uint64_t)number(json, "start"),
		.length = (uint64_t)number(json, "length"),
		.data = !strcmp(kind, "data") || !strcmp(kind, "compressed"),
		.placed = !strcmp(kind, "data"),
	};

	if (range.data)
		range.depth = number(json, "depth");
	if (range.placed)
		range.place = (uint64_t)number(json, "place");
	return range;
}

static struct range of_qemu(const json_t *json)
{
	struct range range = {
		.start = (uint64_t)number(json, "start"),
		.length = (uint64_t)number(json, "length"),
		.data = json_is_true(json_object_get(json, "data")),
		.placed = json_object_get(json, "offset"),
	};

	if (range.data)
		range.depth = number(json, "depth");
	range.placed = range.placed && range.data;
	if (range.placed)
		range.place = (uint64_t)number(json, "offset");
	return range;
}

static struct range *ranges_of(const json_t *list, struct range (*of)(const json_t *json),
			       size_t *ret_n)
{
	struct range *ranges = calloc(json_array_size(list) + 1, sizeof(*ranges));
	size_t n = 0;

	cr_assert(ranges && json_is_array(list));
	for (size_t i = 0; i < json_array_size(list); i++) {
		struct range range = of(json_array_get(list, i));

		n = add_range(ranges, n, &range);
	}
	*ret_n = n;
	return ranges;
}

void maps_agree(struct site *site, const char *file, const char *format)
{
	size_t n_ours, n_theirs;
	json_t *ours, *theirs;
	struct range *a, *b;

	ok(site, "$D map %s --format %s --backing allow --json", file, format);
	ours = answer(site);
	ok(site, "qemu-img map -f %s --output=json %s", format, file);
	theirs = answer(site);
	a = ranges_of(json_object_get(ours, "extents"), of_ours, &n_ours);
	b = ranges_of(theirs, of_qemu, &n_theirs);
	for (size_t i = 0; i < MIN(n_ours, n_theirs); i++)
		cr_assert(!memcmp(&a[i], &b[i], sizeof(a[i])),
			  "%s: range %zu: ours at %lu + %lu, %s %lld %lu; theirs at %lu + %lu, %s "
			  "%lld %lu",
			  file, i, a[i].start, a[i].length, a[i].data ? "data" : "zero", a[i].depth,
			  a[i].place, b[i].start, b[i].length, b[i].data ? "data" : "zero",
			  b[i].depth, b[i].place);
	cr_assert_eq(n_ours, n_theirs);
	free(a);
	free(b);
	json_decref(ours);
	json_decref(theirs);
}
