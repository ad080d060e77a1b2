/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Disks that stand on others: what `corral run` opens for the VMM and what it refuses, with the
 * fake VMM and the real corral-disk; and the words after --disk.
 */
#include <criterion/criterion.h>
#include <fcntl.h>
#include <jansson.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/fd.h"
#include "mgmt/local/chain.h"
#include "mgmt/local/test-host.h"

static struct host host;
static struct said said;

static void init(void)
{
	host_init(&host);
	cr_assert_eq(chdir(host.dir), 0);
}

static void deinit(void)
{
	host_deinit(&host);
}

TestSuite(chain, .init = init, .fini = deinit, .timeout = 60);

static void make(const char *words)
{
	char line[1024];

	snprintf(line, sizeof(line), "%s-disk create %s >/dev/null", getenv("CORRAL"), words);
	cr_assert_eq(system(line), 0, "%s", line);
}

/* base.raw, under middle.qcow2, under top.qcow2, each naming the next as its neighbour. */
static void make_chain(void)
{
	make("base.raw 1M --format raw");
	make("middle.qcow2 --format qcow2 --base base.raw --base-format raw");
	make("top.qcow2 --format qcow2 --base middle.qcow2 --base-format qcow2");
}

static void run_disk(const char *disk, const char *append)
{
	host_corral(&host, &said, "run", "--kernel", host.kernel, "--disk", disk, "--append",
		    append, NULL);
}

static void refused(const char *disk, const char *part)
{
	run_disk(disk, "end=power-off");
	cr_assert_eq(said.status, 1, "%s", said.err);
	assert_has(said.err, part);
	assert_lines(said.err, 1);
	cr_assert_eq(host_left(&host), 0);
}

Test(chain, every_image_is_handed_over_with_its_rights)
{
	make_chain();
	run_disk("top.qcow2,format=qcow2,backing=allow", "fds end=power-off");
	cr_assert_eq(said.status, 0, "%s", said.err);
	assert_has(said.out,
		   "5 disk0 rw\n6 disk0-backing0 r\n7 disk0-backing1 r\n8 description r\n");
}

/* The description that a VM was started with. */
static json_t *described(const char *name)
{
	char path[256];
	json_t *json;

	snprintf(path, sizeof(path), "%s/%s/vm.json", host.run, name);
	json = json_load_file(path, 0, NULL);
	cr_assert(json, "%s", path);
	return json;
}

Test(chain, the_description_says_what_they_are)
{
	json_t *vm, *disk, *chain;
	char path[128];

	make_chain();
	host_corral(&host, &said, "run", "--name", "c", "--detach", "--kernel", host.kernel,
		    "--disk", "top.qcow2,format=qcow2,backing=allow", NULL);
	cr_assert_eq(said.status, 0, "%s", said.err);
	vm = described("c");
	disk = json_array_get(json_object_get(vm, "disks"), 0);
	chain = json_object_get(disk, "chain");
	snprintf(path, sizeof(path), "%s/top.qcow2", host.dir);
	cr_assert_str_eq(json_string_value(json_object_get(disk, "path")), path);
	cr_assert_eq(json_array_size(chain), 2);
	cr_assert_str_eq(json_string_value(json_object_get(json_array_get(chain, 0), "format")),
			 "qcow2");
	cr_assert_str_eq(json_string_value(json_object_get(json_array_get(chain, 1), "format")),
			 "raw");
	assert_has(json_string_value(json_object_get(json_array_get(chain, 1), "path")),
		   "base.raw");
	json_decref(vm);
	host_corral(&host, &said, "kill", "c", NULL);
}

Test(chain, nothing_is_opened_that_was_not_allowed)
{
	make_chain();
	refused("top.qcow2,format=qcow2", "it stands on \"middle.qcow2\", which is not opened "
					  "unless the disk says backing=allow");
	refused("top.qcow2,format=qcow2,backing=deny", "backing=allow");
	refused("base.raw,backing=allow", "only format \"qcow2\" has images under it");
}

Test(chain, an_image_that_is_gone_is_named)
{
	make_chain();
	cr_assert_eq(unlink("base.raw"), 0);
	refused("top.qcow2,format=qcow2,backing=allow",
		"cannot open disk0-backing1 \"base.raw\": No such file or directory");
}

Test(chain, a_template_may_be_under_several_disks)
{
	make_chain();
	make("other.qcow2 --format qcow2 --base base.raw --base-format raw");
	host_corral(&host, &said, "run", "--kernel", host.kernel, "--disk",
		    "middle.qcow2,format=qcow2,backing=allow", "--disk",
		    "other.qcow2,format=qcow2,backing=allow", "--append", "fds end=power-off",
		    NULL);
	cr_assert_eq(said.status, 0, "%s", said.err);
	assert_has(said.out, "disk0-backing0 r\n");
	assert_has(said.out, "disk1-backing0 r\n");
}

/* What older tools make. The header extensions of a version 3 header begin at its length. */
static void forget_format(const char *file)
{
	uint8_t header[4096];
	int fd = open(file, O_RDWR | O_CLOEXEC);
	uint32_t at;

	cr_assert_eq(pread(fd, header, sizeof(header), 0), (ssize_t)sizeof(header));
	at = header[102] << 8 | header[103];
	cr_assert_eq(memcmp(header + at, "\xe2\x79\x2a\xca", 4), 0, "the first extension");
	cr_assert_eq(pwrite(fd, "\x12\x34\x56\x78", 4, at), 4);
	fd_close(fd);
}

Test(chain, a_format_that_is_not_written_is_said)
{
	make("base.raw 1M --format raw");
	make("top.qcow2 --format qcow2 --base base.raw --base-format raw");
	forget_format("top.qcow2");
	refused("top.qcow2,format=qcow2,backing=allow",
		"it does not say which format \"base.raw\" has");
	run_disk("top.qcow2,format=qcow2,backing=allow,backing-format=raw", "fds end=power-off");
	cr_assert_eq(said.status, 0, "%s", said.err);
	assert_has(said.out, "disk0-backing0 r\n");
}

static void write_at(const char *file, off_t offset, const void *data, size_t size)
{
	int fd = open(file, O_WRONLY | O_CLOEXEC);

	cr_assert_eq(pwrite(fd, data, size, offset), (ssize_t)size);
	fd_close(fd);
}

/* middle comes to stand on top: the name has as many letters as there is room for. */
Test(chain, a_chain_that_comes_back_is_refused)
{
	make("base.raw 1M --format raw");
	make("a.qcow2 --format qcow2 --base base.raw --base-format raw");
	make("b.qcow2 --format qcow2 --base a.qcow2 --base-format qcow2");
	cr_assert_eq(unlink("a.qcow2"), 0);
	cr_assert_eq(link("b.qcow2", "a.qcow2"), 0);
	refused("b.qcow2,format=qcow2,backing=allow", "come back to");
}

Test(chain, what_is_no_image_is_refused_with_its_name)
{
	make("base.raw 1M --format raw");
	refused("base.raw,format=qcow2", "base.raw");
	write_at("base.raw", 0, "QFI\xfb\0\0\0\x03", 8);
	refused("base.raw,format=qcow2", "base.raw");
}

Test(chain, a_qcow2_given_as_raw_is_told_and_run)
{
	make("i.qcow2 1M --format qcow2");
	run_disk("i.qcow2", "end=power-off");
	cr_assert_eq(said.status, 0);
	assert_has(said.err, "is given as raw; it looks like qcow2: say format=qcow2");
	assert_lines(said.err, 1);
	run_disk("i.qcow2,format=qcow2", "end=power-off");
	cr_assert_str_empty(said.err);
}

Test(chain, a_fifo_under_an_image_is_not_opened)
{
	make_chain();
	cr_assert_eq(unlink("base.raw"), 0);
	cr_assert_eq(mkfifo("base.raw", 0600), 0);
	refused("top.qcow2,format=qcow2,backing=allow", "it is not a regular file");
}

Test(chain, without_corral_disk_there_is_a_sentence)
{
	make_chain();
	setenv("CORRAL_DISK", "/nonexistent", true);
	refused("top.qcow2,format=qcow2,backing=allow", "cannot start \"/nonexistent\"");
}

Test(chain, a_dry_run_opens_nothing)
{
	host_corral(&host, &said, "run", "--kernel", host.kernel, "--disk",
		    "top.qcow2,format=qcow2,backing=allow,limit=iops:100:bps:10M,onerror=report",
		    "--dry-run", NULL);
	cr_assert_eq(said.status, 0, "%s", said.err);
	assert_has(said.err, "what \"top.qcow2\" stands on (read)");
	assert_has(said.out, "\"iops\": 100");
	assert_has(said.out, "\"bps\": 10485760");
	assert_has(said.out, "\"onerror\": \"report\"");
}

Test(chain, words_that_are_wrong_are_said)
{
	static const struct {
		const char *disk, *part;
	} words[] = {
		{"d,limit=iops", "name and value come in turn, as in iops:1000:bps:100M"},
		{"d,limit=iops:", "name and value come in turn"},
		{"d,limit=iops:x", "limit: iops: \"x\""},
		{"d,limit=iop:5", "limit: unknown word \"iop\", did you mean \"iops\"?"},
		{"d,limit=iops:5:", "name and value come in turn"},
		{"d,format=vmdk", "\"vmdk\" is not one of: raw, qcow2"},
		{"d,onerror=stop", "\"stop\" is not one of: full, pause, report"},
		{"d,chain=x", "chain: is found by what the image says"},
	};

	for (size_t i = 0; i < ARRAY_SIZE(words); i++) {
		host_corral(&host, &said, "run", "--kernel", host.kernel, "--disk", words[i].disk,
			    NULL);
		cr_assert_eq(said.status, 2, "%s: %d", words[i].disk, said.status);
		assert_has(said.err, words[i].part);
	}
}

Test(chain, limits_may_come_in_several_words)
{
	host_corral(&host, &said, "run", "--kernel", host.kernel, "--disk",
		    "d,limit=read-iops:1,limit=write-bps:2K:iops:3", "--dry-run", NULL);
	cr_assert_eq(said.status, 0, "%s", said.err);
	assert_has(said.out, "\"read-iops\": 1");
	assert_has(said.out, "\"write-bps\": 2048");
	assert_has(said.out, "\"iops\": 3");
}

static void named(const char *image, const char *name, const char *expected)
{
	char *path = chain_path(image, name);

	if (expected)
		cr_assert(path && !strcmp(path, expected), "%s on %s: %s", image, name,
			  path ? path : "nothing");
	else
		cr_assert_null(path);
	free(path);
}

Test(chain, names_are_beside_the_image_that_has_them)
{
	named("a.qcow2", "b", "b");
	named("dir/a.qcow2", "b", "dir/b");
	named("/abs/dir/a.qcow2", "../b", "/abs/dir/../b");
	named("dir/a.qcow2", "/b", "/b");
	named("dir/a.qcow2", "file:b", "dir/b");
	named("dir/a.qcow2", "sub/b:c", "dir/sub/b:c");
	named("a", "nbd://host/x", NULL);
	named("a", "json:{\"driver\": \"file\"}", NULL);
	named("a", "http://host/x", NULL);
}
