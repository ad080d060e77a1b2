/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a guest says of its command: frames whole and cut, and everything that is none; what is kept
 * of output; times; kernels' versions and modules; lists of tests and reports.
 */
#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cursor.h"
#include "base/fd.h"
#include "mgmt/local/ci-report.h"
#include "mgmt/local/ci.h"
#include "mgmt/local/guest-modules.h"
#include "mgmt/local/job.h"

struct stream {
	uint8_t data[4 * JOB_FRAME_MAX];
	size_t n;
};

static void frame(struct stream *s, uint32_t type, const void *body, uint32_t size)
{
	struct cursor out = cursor_writer(s->data + s->n, sizeof(s->data) - s->n);

	cursor_put_u32(&out, type);
	cursor_put_u32(&out, size);
	cursor_put_bytes(&out, body, size);
	cr_assert_eq(cursor_status(&out), 0);
	s->n += out.at;
}

static void numbers(struct stream *s, uint32_t type, uint32_t a, uint32_t b, int n)
{
	const uint8_t body[8] = {a, a >> 8, a >> 16, a >> 24, b, b >> 8, b >> 16, b >> 24};

	frame(s, type, body, 4 * n);
}

static void hello(struct stream *s)
{
	numbers(s, JOB_HELLO, JOB_VERSION, 0, 1);
}

/* Feeds the stream in pieces of `step` bytes; what is output comes to `text`. */
static int feed(struct job_parser *parser, const struct stream *s, size_t step, char *text)
{
	struct job_piece piece;

	*parser = (struct job_parser){};
	text[0] = '\0';
	for (size_t at = 0; at < s->n;) {
		ssize_t used = job_parser_take(parser, s->data + at, MIN(step, s->n - at), &piece);

		if (used < 0)
			return used;
		at += used;
		if (piece.size)
			strncat(strcat(text, piece.is_err ? "!" : "."), (const char *)piece.data,
				piece.size);
	}
	return 0;
}

Test(job, output_and_status)
{
	struct stream s = {.n = 0};
	struct job_parser parser;
	char text[64];

	hello(&s);
	frame(&s, JOB_OUT, "out", 3);
	frame(&s, JOB_ERR, "err", 3);
	frame(&s, JOB_OUT, "", 0);
	frame(&s, JOB_OUT, "more", 4);
	numbers(&s, JOB_END, JOB_EXITED, 3, 2);
	cr_assert_eq(feed(&parser, &s, s.n, text), 0);
	cr_assert_str_eq(text, ".out!err.more");
	cr_assert(parser.done && !parser.failed);
	cr_assert_eq(parser.end, JOB_EXITED);
	cr_assert_eq(parser.value, 3);
}

Test(job, cut_anywhere)
{
	struct stream s = {.n = 0};
	struct job_parser parser;
	char text[64];

	hello(&s);
	frame(&s, JOB_OUT, "ab", 2);
	numbers(&s, JOB_END, JOB_SIGNALED, 9, 2);
	for (size_t step = 1; step < s.n; step++) {
		cr_assert_eq(feed(&parser, &s, step, text), 0);
		cr_assert(parser.done && parser.end == JOB_SIGNALED && parser.value == 9);
		cr_assert(!strcmp(text, ".ab") || !strcmp(text, ".a.b"));
	}
}

Test(job, says_why_it_failed)
{
	struct stream s = {.n = 0};
	struct job_parser parser;
	char text[8];

	hello(&s);
	frame(&s, JOB_FAILED, "\x16\0\0\0cannot \x1bmount", 17);
	cr_assert_eq(feed(&parser, &s, s.n, text), 0);
	cr_assert(parser.failed && parser.value == EINVAL);
	cr_assert_str_eq(parser.text, "cannot ?mount");
}

Test(job, nothing_counts_after_the_end)
{
	struct stream s = {.n = 0};
	struct job_parser parser;
	char text[8];

	hello(&s);
	numbers(&s, JOB_END, JOB_EXITED, 0, 2);
	frame(&s, JOB_OUT, "late", 4);
	numbers(&s, 99, 0, 0, 2);
	cr_assert_eq(feed(&parser, &s, s.n, text), 0);
	cr_assert_eq(feed(&parser, &s, 1, text), 0);
	cr_assert_str_eq(text, "");
	cr_assert(parser.done && parser.value == 0);
}

static void refused(const struct stream *s)
{
	struct job_parser parser;
	char text[64];

	cr_assert_eq(feed(&parser, s, s->n, text), -EBADMSG);
	cr_assert_eq(feed(&parser, s, 1, text), -EBADMSG);
	cr_assert(!parser.done);
}

static void refused_after_hello(uint32_t type, uint32_t size, uint32_t a, uint32_t b)
{
	struct stream s = {.n = 0};

	hello(&s);
	numbers(&s, type, a, b, 2);
	s.data[12 + 4] = size;
	s.data[12 + 5] = size >> 8;
	s.data[12 + 7] = size >> 24;
	refused(&s);
}

Test(job, lies_are_refused)
{
	struct stream s = {.n = 0};

	frame(&s, JOB_OUT, "no hello", 8);
	refused(&s);
	s.n = 0;
	numbers(&s, JOB_HELLO, JOB_VERSION + 1, 0, 1);
	refused(&s);
	s.n = 0;
	hello(&s);
	hello(&s);
	refused(&s);
	refused_after_hello(JOB_TYPES, 8, 0, 0);
	refused_after_hello(JOB_OUT, JOB_FRAME_MAX + 1, 0, 0);
	refused_after_hello(JOB_OUT, 0xff000000, 0, 0);
	refused_after_hello(JOB_END, 7, 0, 0);
	refused_after_hello(JOB_END, 8, JOB_ENDS, 0);
	refused_after_hello(JOB_END, 8, JOB_EXITED, 256);
	refused_after_hello(JOB_END, 8, JOB_SIGNALED, 0);
	refused_after_hello(JOB_END, 8, JOB_SIGNALED, 127);
	refused_after_hello(JOB_END, 8, JOB_NO_EXEC, 4096);
	refused_after_hello(JOB_FAILED, 3, 0, 0);
	refused_after_hello(JOB_FAILED, 4 + JOB_TEXT_MAX + 1, 0, 0);
}

Test(job, keeps_the_last_bytes)
{
	struct job_kept kept = {.data = malloc(JOB_KEPT_MAX)};
	char *text;

	job_keep(&kept, "hello", 5);
	text = job_kept_text(&kept);
	cr_assert_str_eq(text, "hello");
	free(text);
	for (int i = 0; i < JOB_KEPT_MAX; i++)
		job_keep(&kept, "xyz", 3);
	job_keep(&kept, "the end", 7);
	text = job_kept_text(&kept);
	cr_assert(!strncmp(text, "[…]", 5) && strlen(text) == JOB_KEPT_MAX + 5);
	cr_assert_str_eq(text + strlen(text) - 10, "xyzthe end");
	free(text);
	free(kept.data);
}

Test(job, times)
{
	static const char *const bad[] = {
		"", "s", "0", "-1", "5x", "1 m", "31000000", "721h", "99999999999999999999"};
	uint64_t ms = 0;

	cr_assert(!job_time_parse("90", &ms) && ms == 90000);
	cr_assert(!job_time_parse("30s", &ms) && ms == 30000);
	cr_assert(!job_time_parse("5m", &ms) && ms == 300000);
	cr_assert(!job_time_parse("720h", &ms) && ms == 720 * 3600000ull);
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
		cr_assert_eq(job_time_parse(bad[i], &ms), -EINVAL, "%s", bad[i]);
}

/* Files of a test's own. */

static char place[64];

static void place_make(void)
{
	strcpy(place, "/tmp/corral-job-XXXXXX");
	cr_assert(mkdtemp(place));
}

static void place_remove(void)
{
	char command[128];

	snprintf(command, sizeof(command), "rm -rf '%s'", place);
	cr_assert_eq(system(command), 0);
}

static const char *file_make(const char *name, const void *data, size_t size)
{
	static char path[128];
	int fd;

	snprintf(path, sizeof(path), "%s/%s", place, name);
	fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
	cr_assert(fd >= 0 && !fd_write_full(fd, data, size));
	fd_close(fd);
	return path;
}

static const char *bzimage_make(const char *version)
{
	static char data[4096];

	memset(data, 0, sizeof(data));
	memcpy(data + 0x202, "HdrS", 4);
	data[0x20f] = 4; /* at 0x400 + 0x200 */
	strcpy(data + 0x600, version);
	return file_make("vmlinuz", data, sizeof(data));
}

Test(guest, kernel_version, .init = place_make, .fini = place_remove)
{
	static const char elf[] = "\177ELF xxx Linux version %s (x) Linux version 6.9.1-mine (me)"
				  "                                    ";
	char version[GUEST_VERSION_MAX];
	struct error err = ERROR_NULL;

	cr_assert_eq(guest_kernel_version(bzimage_make("6.1.0-9-amd64 (x)"), version, &err), 0);
	cr_assert_str_eq(version, "6.1.0-9-amd64");
	cr_assert_eq(guest_kernel_version(file_make("vmlinux", elf, sizeof(elf)), version, &err),
		     0);
	cr_assert_str_eq(version, "6.9.1-mine");
	cr_assert_lt(guest_kernel_version(bzimage_make("../../etc (x)"), version, &err), 0);
	cr_assert_lt(guest_kernel_version(file_make("x", "no kernel", 9), version, &err), 0);
	cr_assert(strstr(err.text, "cannot tell the version"));
}

static const char dep[] = "kernel/a/virtio_pci.ko: kernel/a/virtio.ko kernel/a/virtio-ring.ko\n"
			  "kernel/a/virtio_blk.ko.xz: kernel/a/virtio.ko\n"
			  "kernel/a/virtio.ko:\nkernel/a/virtio-ring.ko:\n"
			  "kernel/a/my_overlay.ko: kernel/a/never.ko\n"
			  "kernel/a/overlay.ko:\n";

static struct guest_modules_wish modules_wish(const char *builtin)
{
	static char kernel[128];

	snprintf(kernel, sizeof(kernel), "%s", bzimage_make("6.1 (x)"));
	file_make("modules.dep", dep, strlen(dep));
	file_make("modules.builtin", builtin, strlen(builtin));
	return (struct guest_modules_wish){
		.kernel = kernel, .modules = place, .file_system = "ext4"};
}

Test(guest, modules_in_order, .init = place_make, .fini = place_remove)
{
	static const char *const order[] = {"kernel/a/virtio-ring.ko", "kernel/a/virtio.ko",
					    "kernel/a/virtio_pci.ko", "kernel/a/virtio_blk.ko.xz",
					    "kernel/a/overlay.ko"};
	struct guest_modules_wish wish =
		modules_wish("kernel/b/virtio_console.ko\nkernel/b/ext4.ko\n");
	struct guest_modules modules;
	struct error err = ERROR_NULL;

	cr_assert_eq(guest_modules_find(&modules, &wish, &err), 0, "%s", err.text);
	cr_assert_eq(modules.n_files, ARRAY_SIZE(order));
	for (size_t i = 0; i < ARRAY_SIZE(order); i++)
		cr_assert_str_eq(modules.files[i], order[i]);
	guest_modules_deinit(&modules);
}

Test(guest, missing_module_is_named, .init = place_make, .fini = place_remove)
{
	struct guest_modules_wish wish = modules_wish("kernel/b/ext4.ko\n");
	struct guest_modules modules;
	struct error err = ERROR_NULL;

	cr_assert_eq(guest_modules_find(&modules, &wish, &err), -ENOENT);
	cr_assert(strstr(err.text, "virtio_console") && strstr(err.text, place), "%s", err.text);
	wish.modules = "/nowhere";
	cr_assert_eq(guest_modules_find(&modules, &wish, &err), -ENOENT);
	cr_assert(strstr(err.text, "/nowhere/lib/modules/6.1"), "%s", err.text);
	wish.modules = "none";
	cr_assert_eq(guest_modules_find(&modules, &wish, &err), 0);
	cr_assert_eq(modules.n_files, 0);
}

/* Lists of tests. */

static int list_read(const char *text, struct ci_list *list, struct error *err)
{
	return ci_list_read(list, file_make("list.json", text, strlen(text)), err);
}

Test(ci, list_with_defaults, .init = place_make, .fini = place_remove)
{
	struct error err = ERROR_NULL;
	struct ci_list list;
	char path[128];

	cr_assert_eq(list_read("{\"defaults\": {\"rootfs\": \"root\", \"timeout\": \"5m\", "
			       "\"env\": {\"A\": \"1\", \"B\": \"2\"}}, \"tests\": ["
			       "{\"name\": \"a\", \"command\": [\"x\", \"y z\"], "
			       "\"memory\": \"1G\", \"env\": {\"A\": \"3\"}},"
			       "{\"name\": \"b\", \"command\": [\"x\"], \"rootfs\": \"/r\", "
			       "\"expect-status\": 3}]}",
			       &list, &err),
		     0, "%s", err.text);
	snprintf(path, sizeof(path), "%s/root", place);
	cr_assert_eq(list.n_tests, 2);
	cr_assert_str_eq(list.tests[0].rootfs, path);
	cr_assert_str_eq(list.tests[0].command[1], "y z");
	cr_assert_null(list.tests[0].command[2]);
	cr_assert_eq(list.tests[0].memory, 1ull << 30);
	cr_assert_str_eq(list.tests[0].environment[0], "A=3");
	cr_assert_str_eq(list.tests[0].environment[1], "B=2");
	cr_assert_str_eq(list.tests[1].rootfs, "/r");
	cr_assert_str_eq(list.tests[1].timeout, "5m");
	cr_assert_str_eq(list.tests[1].environment[0], "A=1");
	cr_assert_eq(list.tests[1].expect_status, 3);
	cr_assert_null(list.tests[1].disks);
	cr_assert_null(list.tests[1].nets);
	ci_list_deinit(&list);
}

Test(ci, disks_and_nets_of_a_list, .init = place_make, .fini = place_remove)
{
	struct error err = ERROR_NULL;
	struct ci_list list;
	char disk[160];

	cr_assert_eq(list_read("{\"defaults\": {\"rootfs\": \"/r\", \"command\": [\"x\"], "
			       "\"disks\": [\"a,,b.img,queues=2\", \"/c.img,readonly=on\"], "
			       "\"vsock-cid\": 5}, \"tests\": [{\"name\": \"a\"}, "
			       "{\"name\": \"b\", \"disks\": [], \"nets\": [\"user\"]}]}",
			       &list, &err),
		     0, "%s", err.text);
	snprintf(disk, sizeof(disk), "%s/a,,b.img,queues=2", place);
	cr_assert_str_eq(list.tests[0].disks[0], disk);
	cr_assert_str_eq(list.tests[0].disks[1], "/c.img,readonly=on");
	cr_assert_null(list.tests[0].disks[2]);
	cr_assert_eq(list.tests[0].vsock_cid, 5);
	cr_assert_null(list.tests[1].disks[0]);
	cr_assert_str_eq(list.tests[1].nets[0], "user");
	ci_list_deinit(&list);
}

/* Commas of the directory must not end the disk's name. */
Test(ci, disks_beside_a_list_with_commas, .init = place_make, .fini = place_remove)
{
	static const char text[] = "{\"tests\": [{\"name\": \"a\", \"rootfs\": \"r,\", "
				   "\"command\": [\"x\"], \"disks\": [\"d.img\"]}]}";
	struct error err = ERROR_NULL;
	struct ci_list list;
	char path[128];

	snprintf(path, sizeof(path), "%s/a,b", place);
	cr_assert_eq(mkdir(path, 0700), 0);
	cr_assert_eq(ci_list_read(&list, file_make("a,b/list", text, strlen(text)), &err), 0, "%s",
		     err.text);
	snprintf(path, sizeof(path), "%s/a,,b/d.img", place);
	cr_assert_str_eq(list.tests[0].disks[0], path);
	snprintf(path, sizeof(path), "%s/a,b/r,", place);
	cr_assert_str_eq(list.tests[0].rootfs, path);
	ci_list_deinit(&list);
}

Test(ci, environment_of_a_list_may_be_ours, .init = place_make, .fini = place_remove)
{
	struct error err = ERROR_NULL;
	struct ci_list list;

	cr_assert_eq(list_read("{\"defaults\": {\"rootfs\": \"/r\", \"command\": [\"x\"], "
			       "\"env\": {\"A\": \"1\", \"AB\": null}}, \"tests\": ["
			       "{\"name\": \"a\", \"env\": {\"A\": null, \"AB\": \"2\"}}]}",
			       &list, &err),
		     0, "%s", err.text);
	cr_assert_str_eq(list.tests[0].environment[0], "A");
	cr_assert_str_eq(list.tests[0].environment[1], "AB=2");
	cr_assert_null(list.tests[0].environment[2]);
	ci_list_deinit(&list);
}

Test(ci, bad_lists_name_the_place, .init = place_make, .fini = place_remove)
{
	static const struct {
		const char *text, *says;
	} bad[] = {
		{"{", "list.json:1"},
		{"[]", "is not an object"},
		{"{\"tests\": []}", "tests: is not an array"},
		{"{\"test\": []}", "test: is not known"},
		{"{\"tests\": [3]}", "tests[0].is not an object"},
		{"{\"tests\": [{\"command\": [\"x\"], \"rootfs\": \"/\"}]}", "tests[0].name"},
		{"{\"tests\": [{\"name\": \"a\", \"rootfs\": \"/\"}]}", "tests[0].command"},
		{"{\"tests\": [{\"name\": \"a\", \"command\": [\"x\"]}]}", "tests[0].rootfs"},
		{"{\"tests\": [{\"name\": \"a\", \"command\": [\"x\", 1]}]}", "command[1]"},
		{"{\"tests\": [{\"name\": \"a\", \"command\": \"x\"}]}", "tests[0].command"},
		{"{\"tests\": [{\"name\": \"a\", \"commnd\": [\"x\"]}]}", "commnd"},
		{"{\"tests\": [{\"env\": {\"A\": 1}}]}", "env.A"},
		{"{\"tests\": [{\"env\": {\"A=B\": null}}]}", "env.A=B: is no name"},
		{"{\"tests\": [{\"disks\": \"a.img\"}]}", "tests[0].disks: is not an array"},
		{"{\"tests\": [{\"disks\": [\"a.img\", {}]}]}", "disks[1]: is not a text"},
		{"{\"tests\": [{\"nets\": [1]}]}", "nets[0]: is not a text"},
		{"{\"defaults\": {\"cpus\": -1}, \"tests\": [{}]}", "defaults.cpus"},
		{"{\"tests\": [{\"name\": \"a\", \"command\": [\"x\"], \"rootfs\": \"/\", "
		 "\"timeout\": \"soon\"}]}",
		 "timeout: \"soon\""},
		{"{\"defaults\": {\"command\": [\"x\"], \"rootfs\": \"/\"}, "
		 "\"tests\": [{\"name\": \"a\"}, {\"name\": \"a\"}]}",
		 "tests[1].name: \"a\" is there twice"},
	};

	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		struct error err = ERROR_NULL;
		struct ci_list list;

		cr_assert_lt(list_read(bad[i].text, &list, &err), 0, "%s", bad[i].text);
		cr_assert(strstr(err.text, bad[i].says), "%s: %s", bad[i].text, err.text);
		cr_assert_null(list.tests);
	}
}

Test(ci, junit_escapes, .init = place_make, .fini = place_remove)
{
	char kept[JOB_KEPT_MAX] = "a<b>&\x1b[31m\xff\xc3\xbc\n", path[128];
	struct ci_result results[2] = {{.name = "one \"<&", .passed = true, .job = {.ms = 1234}},
				       {.name = "two",
					.job = {.outcome = JOB_TIMED_OUT,
						.text = "slow & late",
						.out = {.data = kept, .n = strlen(kept)}}}};
	struct error err = ERROR_NULL;
	char *text;
	size_t size;
	int fd;

	snprintf(path, sizeof(path), "%s/report.xml", place);
	cr_assert_eq(ci_junit_write(path, "s", results, 2, &err), 0);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	cr_assert_eq(fd_read_all(fd, 65536, &text, &size), 0);
	cr_assert(strstr(text, "tests=\"2\" failures=\"1\" errors=\"0\""), "%s", text);
	cr_assert(strstr(text, "name=\"one &quot;&lt;&amp;\" time=\"1.234\""), "%s", text);
	cr_assert(strstr(text, "<failure type=\"timed-out\" message=\"slow &amp; late\"/>"));
	cr_assert(strstr(text, "<system-out>a&lt;b&gt;&amp;?[31m?\xc3\xbc\n</system-out>"), "%s",
		  text);
	free(text);
	fd_close(fd);
	cr_assert_lt(ci_junit_write("/nowhere/x", "s", results, 2, &err), 0);
	cr_assert(strstr(err.text, "cannot write the report \"/nowhere/x\""));
}
