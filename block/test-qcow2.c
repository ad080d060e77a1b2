/* SPDX-License-Identifier: Apache-2.0 */
/*
 * For the tests of qcow2, see test-qcow2.h.
 */
#include "block/test-qcow2.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/fd.h"

static char directory[64];

static const char *in_directory(void)
{
	if (!directory[0]) {
		snprintf(directory, sizeof(directory), "%s/test-qcow2-XXXXXX",
			 access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp");
		cr_assert(mkdtemp(directory));
	}
	return directory;
}

char *test_path(char *path, const char *name)
{
	snprintf(path, TEST_PATH_SIZE, "%s/%s", in_directory(), name);
	return path;
}

void test_clean(void)
{
	char output[64];

	if (directory[0])
		test_command(output, sizeof(output), "rm -f ./* && rmdir \"$PWD\"");
	directory[0] = 0;
}

/* splitmix64 */
uint64_t test_random(uint64_t *state)
{
	uint64_t x = *state += UINT64_C(0x9e3779b97f4a7c15);

	x = (x ^ x >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
	x = (x ^ x >> 27) * UINT64_C(0x94d049bb133111eb);
	return x ^ x >> 31;
}

uint64_t test_below(uint64_t *state, uint64_t n)
{
	return test_random(state) % n;
}

void test_fill(uint64_t *state, void *data, size_t size)
{
	uint8_t *to = data;

	for (size_t i = 0; i < size; i += 8) {
		uint64_t value = test_random(state);

		memcpy(to + i, &value, MIN(size - i, sizeof(value)));
	}
}

static int run(char *output, size_t size, const char *command)
{
	size_t n;
	FILE *pipe = popen(command, "r");

	cr_assert(pipe);
	n = fread(output, 1, size - 1, pipe);
	output[n] = 0;
	while (n && fgetc(pipe) != EOF)
		;
	n = (size_t)pclose(pipe);
	return WIFEXITED(n) ? WEXITSTATUS(n) : -1;
}

int test_command(char *output, size_t size, const char *format, ...)
{
	char line[1024], command[1200];
	va_list args;

	va_start(args, format);
	vsnprintf(line, sizeof(line), format, args);
	va_end(args);
	snprintf(command, sizeof(command), "cd %s && { %s; } 2>&1", in_directory(), line);
	return run(output, size, command);
}

bool test_has_qemu_img(void)
{
	char output[64];

	return test_command(output, sizeof(output), "command -v qemu-img") == 0;
}

void test_qemu_img(const char *format, ...)
{
	char line[1024], output[1024];
	va_list args;
	int r;

	va_start(args, format);
	vsnprintf(line, sizeof(line), format, args);
	va_end(args);
	r = test_command(output, sizeof(output), "qemu-img %s", line);
	cr_assert_eq(r, 0, "qemu-img %s: %s", line, output);
}

/* Names are of the directory; what an image does not say is raw. */
static int open_by_name(struct block_opener *opener _unused_, const char *name, const char *format,
			const char **ret_format, struct error *err)
{
	char path[TEST_PATH_SIZE];
	int fd = open(test_path(path, name), O_RDONLY | O_CLOEXEC);

	*ret_format = format && !strcmp(format, "qcow2") ? "qcow2" : "raw";
	return fd >= 0 ? fd : error_set(err, -errno, "cannot open \"%s\"", name);
}

int test_try_open(struct block_image **ret_image, const char *name, const struct block_open *like,
		  int flags, struct error *err)
{
	struct block_opener opener = {.open = open_by_name};
	struct block_open how = *like;
	char path[TEST_PATH_SIZE];
	int fd = open(test_path(path, name), flags | O_CLOEXEC);

	cr_assert_geq(fd, 0, "%s", path);
	how.name = name;
	how.opener = &opener;
	return block_open(ret_image, fd, &how, err);
}

static struct block_image *open_or_fail(const char *name, const struct block_open *like)
{
	struct block_image *image = NULL;
	struct error err = ERROR_NULL;
	int r = test_try_open(&image, name, like, like->readonly ? O_RDONLY : O_RDWR, &err);

	cr_assert_eq(r, 0, "%s", err.text);
	return image;
}

struct block_image *test_open(const char *name, const char *format, bool readonly)
{
	return open_or_fail(name, &(struct block_open){.format = format, .readonly = readonly});
}

struct block_image *test_open_recorded(const char *name, struct block_recorder *recorder)
{
	return open_or_fail(name, &(struct block_open){.format = "qcow2", .recorder = recorder});
}

void test_create(const char *name, const struct block_create *create)
{
	char path[TEST_PATH_SIZE];
	int fd = open(test_path(path, name), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	struct error err = ERROR_NULL;

	cr_assert_geq(fd, 0);
	cr_assert_eq(block_create(fd, create, name, &err), 0, "%s", err.text);
	close(fd);
}

void test_judge(const char *name, const uint8_t *data, uint64_t size, bool leaks_allowed)
{
	char path[TEST_PATH_SIZE], output[2048];
	int fd = open(test_path(path, "judge.raw"), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	int r;

	cr_assert_geq(fd, 0);
	cr_assert_eq(fd_write_full(fd, data, size), 0);
	close(fd);
	r = test_command(output, sizeof(output), "qemu-img check -f qcow2 %s", name);
	cr_assert(r == 0 || (r == 3 && leaks_allowed), "qemu-img check: %d, %s", r, output);
	r = test_command(output, sizeof(output), "qemu-img compare -f qcow2 -F raw %s judge.raw",
			 name);
	cr_assert_eq(r, 0, "qemu-img compare: %s", output);
}

/* What qemu-img map says of a range, in our words. */
static bool same(const json_t *theirs, const struct block_extent *ours)
{
	const bool data = json_is_true(json_object_get(theirs, "data"));
	const bool zero = json_is_true(json_object_get(theirs, "zero"));
	const json_t *place = json_object_get(theirs, "offset");

	switch (ours->kind) {
	case BLOCK_ABSENT:
		return !data && zero;
	case BLOCK_ZERO:
		return !data && zero;
	case BLOCK_DATA:
		return data && (!place || (uint64_t)json_integer_value(place) == ours->place);
	case BLOCK_COMPRESSED:
		return data && !place;
	}
	return false;
}

void test_judge_map(const char *name, const char *format)
{
	char path[TEST_PATH_SIZE], output[64];
	struct block_image *image = test_open(name, format, true);
	json_t *list, *entry;
	size_t i;

	cr_assert_eq(test_command(output, sizeof(output),
				  "qemu-img map -f %s --output=json %s >map.json", format, name),
		     0);
	list = json_load_file(test_path(path, "map.json"), 0, NULL);
	cr_assert(list);
	json_array_foreach(list, i, entry)
	{
		uint64_t at = (uint64_t)json_integer_value(json_object_get(entry, "start"));
		uint64_t end = at + (uint64_t)json_integer_value(json_object_get(entry, "length"));
		json_t *place = json_object_get(entry, "offset");

		while (at < end) {
			struct block_extent extent;

			cr_assert_eq(block_map(image, at, end - at, &extent), 0);
			cr_assert(same(entry, &extent), "%s at %llu: we say %d at %llu", name,
				  (unsigned long long)at, extent.kind,
				  (unsigned long long)extent.place);
			at += extent.length;
			if (place)
				json_integer_set(place, json_integer_value(place) +
								(json_int_t)extent.length);
		}
	}
	json_decref(list);
	block_close(image);
}
