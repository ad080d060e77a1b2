/* SPDX-License-Identifier: Apache-2.0 */
/*
 * convert, clone, snapshot, commit against qemu-img; what stands on what, and what is not opened.
 */
#include <criterion/criterion.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "disk/test-disk.h"

#define MIB (UINT64_C(1) << 20)

static struct site site;

static void init(void)
{
	site_init(&site);
}

static void deinit(void)
{
	site_deinit(&site);
}

TestSuite(copies, .init = init, .fini = deinit, .timeout = 240);

/* `b` reads as `a`, by both tools, and is sound. */
static void same(const char *a, const char *a_format, const char *b, const char *b_format)
{
	ok(&site, "qemu-img compare -f %s -F %s %s %s", a_format, b_format, a, b);
	ok(&site, "$D compare %s %s --format %s --second %s --backing allow", a, b, a_format,
	   b_format);
	if (!strcmp(b_format, "qcow2")) {
		ok(&site, "qemu-img check -q -f qcow2 %s", b);
		ok(&site, "$D check %s --format qcow2", b);
		maps_agree(&site, b, b_format);
	}
}

static json_int_t allocated(const char *file)
{
	json_int_t n;

	ok(&site, "echo \"{\\\"n\\\": $(( $(stat -c %%b %s) * 512 ))}\"", file);
	json_t *json = answer(&site);
	n = number(json, "n");
	json_decref(json);
	return n;
}

Test(copies, convert_in_every_direction)
{
	static const char *const targets[] = {
		"--to raw",
		"--to qcow2",
		"--to qcow2 --cluster 4K",
		"--to qcow2 --cluster 2M",
		"--to qcow2 --compress",
		"--to qcow2 --compress --compression zstd --cluster 4K",
		"--to qcow2 --compress --cluster 2M",
		"--to qcow2 --lazy-refcounts",
	};
	static const char *const sources[] = {
		"-f raw a",
		"-f qcow2 -o cluster_size=4k a",
		"-f qcow2 a",
		"-f qcow2 -o cluster_size=2M a",
	};

	for (size_t i = 0; i < ARRAY_SIZE(sources); i++) {
		const char *from = strstr(sources[i], "raw") ? "raw" : "qcow2";

		ok(&site, "rm -f a; qemu-img create -q %s 97M", sources[i]);
		scribble(&site, "a", from, 97 * MIB, 40 + (unsigned int)i);
		for (size_t k = 0; k < ARRAY_SIZE(targets); k++) {
			ok(&site, "$D convert a b --from %s %s --overwrite", from, targets[k]);
			same("a", from, "b", strstr(targets[k], "raw") ? "raw" : "qcow2");
		}
	}
	cr_expect_eq(strangers(&site, " a b "), 0);
}

Test(copies, convert_of_what_qemu_compressed)
{
	static const char *const options[] = {"", "-o compression_type=zstd", "-o cluster_size=4k",
					      "-o cluster_size=2M"};

	ok(&site, "truncate -s 64M r");
	scribble(&site, "r", "raw", 64 * MIB, 3);
	for (size_t i = 0; i < ARRAY_SIZE(options); i++) {
		ok(&site, "qemu-img convert -c -f raw -O qcow2 %s r a", options[i]);
		ok(&site, "$D convert a b --from qcow2 --to raw --overwrite");
		same("r", "raw", "b", "raw");
	}
}

Test(copies, convert_of_any_size)
{
	static const uint64_t sizes[] = {512,           4096 - 512,    65536 + 512,
					 2 * MIB - 512, 2 * MIB + 512, 5 * MIB + 1024};

	for (size_t i = 0; i < ARRAY_SIZE(sizes); i++) {
		ok(&site, "head -c %lu /dev/urandom >a", sizes[i]);
		ok(&site, "$D convert a b --from raw --to qcow2 --overwrite");
		same("a", "raw", "b", "qcow2");
		ok(&site, "$D convert a b --from raw --to qcow2 --compress --overwrite");
		same("a", "raw", "b", "qcow2");
		ok(&site, "$D convert b c --from qcow2 --to raw --overwrite; cmp a c");
	}
}

Test(copies, zeroes_become_holes)
{
	ok(&site, "dd if=/dev/zero of=a bs=1M count=64 status=none");
	ok(&site, "printf x | dd of=a bs=1 seek=33000000 conv=notrunc status=none");
	ok(&site, "$D convert a r --from raw --to raw; $D convert a q --from raw --to qcow2");
	cr_expect_leq(allocated("r"), 4096);
	cr_expect_leq(allocated("q"), 8 * 65536);
	same("a", "raw", "r", "raw");
	same("a", "raw", "q", "qcow2");
}

Test(copies, convert_reads_an_internal_snapshot)
{
	ok(&site, "qemu-img create -q -f qcow2 a 64M");
	scribble(&site, "a", "qcow2", 64 * MIB, 21);
	ok(&site, "qemu-img convert -f qcow2 -O raw a before; qemu-img snapshot -c first a");
	scribble(&site, "a", "qcow2", 64 * MIB, 22);
	ok(&site, "$D convert a b --from qcow2 --to raw --snapshot first");
	same("before", "raw", "b", "raw");
	ok(&site, "$D convert a c --from qcow2 --to raw --snapshot 1; cmp b c");
	refused(&site, 1, "second", "$D convert a d --from qcow2 --to raw --snapshot second");
	refused(&site, 2, "a raw image has none",
		"$D convert b d --from raw --to raw --snapshot first");
	cr_expect_eq(strangers(&site, " a b c before "), 0);
}

Test(copies, convert_refuses)
{
	ok(&site, "truncate -s 1M a; ln a also; echo mine >b");
	refused(&site, 2, "--from", "$D convert a c --to raw");
	refused(&site, 2, "--to", "$D convert a c --from raw");
	refused(&site, 2, "no clusters", "$D convert a c --from raw --to raw --compress");
	refused(&site, 1, "--overwrite", "$D convert a b --from raw --to raw");
	refused(&site, 2, "the same file", "$D convert a also --from raw --to raw --overwrite");
	refused(&site, 2, "the same file", "$D convert a a --from raw --to raw --overwrite");
	refused(&site, 1, "No such file", "$D convert x c --from raw --to raw");
	refused(&site, 1, "No such file", "$D convert a x/c --from raw --to raw");
	refused(&site, 1, "qcow2", "$D convert a c --from qcow2 --to raw");
	ok(&site, "grep -qx mine b");
	cr_expect_eq(strangers(&site, " a also b "), 0);
}

/* A full store, or a limit. */
Test(copies, what_cannot_be_written_leaves_nothing)
{
	ok(&site, "head -c 8M /dev/urandom >a");
	refused(&site, 1, "cannot write \"b\" at byte",
		"ulimit -f 4096; $D convert a b --from raw --to qcow2");
	refused(&site, 1, "cannot", "ulimit -f 4096; $D clone a b --format raw --copy");
	cr_expect_eq(strangers(&site, " a "), 0);
}

Test(copies, a_backing_file_is_opened_only_where_that_was_allowed)
{
	ok(&site, "qemu-img create -q -f raw base 64M");
	scribble(&site, "base", "raw", 64 * MIB, 31);
	ok(&site, "qemu-img create -q -f qcow2 -b base -F raw a");
	scribble(&site, "a", "qcow2", 64 * MIB, 32);
	refused(&site, 1, "--backing allow", "$D convert a b --from qcow2 --to raw");
	refused(&site, 1, "--backing allow", "$D compare a a --format qcow2");
	refused(&site, 1, "--backing allow", "$D commit a --format qcow2");
	refused(&site, 1, "--backing allow",
		"$D convert a b --from qcow2 --to raw --backing refuse");
	cr_expect_eq(strangers(&site, " base a "), 0);
	/* What needs no chain opens none: the base need not even be there. */
	ok(&site, "mv base away; $D info a --format qcow2; $D map a --format qcow2; "
		  "$D check a --format qcow2; $D snapshot a o --format qcow2; mv away base");
	ok(&site, "$D convert a b --from qcow2 --to raw --backing allow");
	same("a", "qcow2", "b", "raw");
	same("o", "qcow2", "b", "raw");
}

Test(copies, backing_names_that_are_not_followed)
{
	ok(&site, "truncate -s 1M base; qemu-img create -q -f qcow2 -b base -F raw a");
	ok(&site, "rm base; mkfifo base");
	refused(&site, 1, "neither a file nor",
		"$D convert a b --from qcow2 --to raw --backing allow");
	ok(&site, "rm base; ln -s /dev/zero base");
	refused(&site, 1, "neither a file nor",
		"$D convert a b --from qcow2 --to raw --backing allow");
	ok(&site, "rm base; ln -s a base; qemu-img rebase -q -u -f qcow2 -b base -F qcow2 a");
	refused(&site, 1, "stands on", "$D convert a b --from qcow2 --to raw --backing allow");
	ok(&site, "qemu-img rebase -q -u -f qcow2 -b nbd://localhost:1/x -F raw a");
	refused(&site, 1, "not the name of a file",
		"$D convert a b --from qcow2 --to raw --backing allow");
	ok(&site, "qemu-img rebase -q -u -f qcow2 -b other -F vmdk a");
	refused(&site, 1, "\"vmdk\"", "$D convert a b --from qcow2 --to raw --backing allow");
	cr_expect_eq(strangers(&site, " a base "), 0);
}

Test(copies, a_format_that_is_not_said_has_to_be)
{
	ok(&site, "qemu-img create -q -f raw base 1M; qemu-io -f raw -c 'write -P 3 0 4k' base "
		  ">/dev/null");
	/* qemu-img says the format always: what says it becomes an extension that nobody knows. */
	ok(&site, "qemu-img create -q -f qcow2 -b base -F raw a; printf '\\021\\021\\021\\021' | "
		  "dd of=a bs=1 seek=112 conv=notrunc status=none");
	refused(&site, 1, "--backing-format",
		"$D convert a b --from qcow2 --to raw --backing allow");
	ok(&site, "$D convert a b --from qcow2 --to raw --backing allow --backing-format raw");
	ok(&site, "cmp base b");
}

Test(copies, a_chain_is_followed_from_image_to_image)
{
	ok(&site, "mkdir sub; truncate -s 16M sub/base");
	scribble(&site, "sub/base", "raw", 16 * MIB, 51);
	ok(&site, "cd sub; qemu-img create -q -f qcow2 -b base -F raw middle 24M");
	scribble(&site, "sub/middle", "qcow2", 24 * MIB, 52);
	ok(&site, "qemu-img create -q -f qcow2 -b sub/middle -F qcow2 top 32M");
	scribble(&site, "top", "qcow2", 32 * MIB, 53);
	ok(&site, "$D convert top b --from qcow2 --to qcow2 --backing allow");
	same("top", "qcow2", "b", "qcow2");
	maps_agree(&site, "top", "qcow2");
	ok(&site, "$D info top --format qcow2 --backing allow --json");
	json_t *json = answer(&site);
	cr_expect_eq(json_array_size(json_object_get(json, "chain")), 2);
	json_decref(json);
}

Test(copies, clone_and_snapshot_are_overlays)
{
	ok(&site, "mkdir sub; qemu-img create -q -f qcow2 base 64M");
	scribble(&site, "base", "qcow2", 64 * MIB, 61);
	ok(&site, "$D clone base beside --format qcow2");
	ok(&site, "$D snapshot base sub/below --format qcow2 --cluster 4K");
	ok(&site, "$D create third --format qcow2 --base base --base-format qcow2");
	ok(&site, "$D create larger 96M --format qcow2 --base base --base-format qcow2");
	same("base", "qcow2", "beside", "qcow2");
	same("base", "qcow2", "sub/below", "qcow2");
	same("base", "qcow2", "third", "qcow2");
	ok(&site, "qemu-img compare -f qcow2 -F qcow2 base larger");
	/* Relative where they lie together: the directory can be moved. */
	ok(&site, "$D info beside --format qcow2");
	cr_expect(has(site.out, "stands on     base (qcow2)"), "%s", site.out);
	refused(&site, 2, "cannot stand on itself",
		"$D snapshot base base --format qcow2 --overwrite");
	refused(&site, 2, "cannot stand on another",
		"$D create x --format raw --base base --base-format qcow2");
	refused(&site, 1, "No such file", "$D clone nothing x --format qcow2");
	cr_expect_eq(strangers(&site, " base beside sub third larger "), 0);
}

Test(copies, clone_copies)
{
	json_t *json;

	ok(&site, "mkdir sub; truncate -s 64M a");
	scribble(&site, "a", "raw", 64 * MIB, 71);
	ok(&site, "$D clone a b --format raw --copy --json; cp b c; cmp a b");
	json = answer(&site);
	cr_expect_eq(number(json, "size"), 64 * MIB);
	json_decref(json);
	cr_expect_leq(allocated("b"), allocated("a") + 4096);
	ok(&site, "qemu-img create -q -f qcow2 -b a -F raw q; $D clone q w --format qcow2 --copy; "
		  "cmp q w");
	refused(&site, 1, "another directory", "$D clone q sub/w --format qcow2 --copy");
	refused(&site, 1, "qcow2", "$D clone a x --format qcow2 --copy");
	cr_expect_eq(strangers(&site, " a b c q w sub "), 0);
}

static void committed(const char *base_format, const char *size)
{
	ok(&site, "rm -f base a; qemu-img create -q -f %s base 64M", base_format);
	scribble(&site, "base", base_format, 64 * MIB, 81);
	ok(&site, "qemu-img create -q -f qcow2 -b base -F %s a %s", base_format, size);
	scribble(&site, "a", "qcow2", 64 * MIB, 82);
	ok(&site, "qemu-img convert -f qcow2 -O raw a before");
	ok(&site, "$D commit a --format qcow2 --backing allow");
	same("before", "raw", "base", base_format);
	same("before", "raw", "a", "qcow2");
}

Test(copies, commit_into_what_it_stands_on)
{
	committed("raw", "64M");
	committed("qcow2", "64M");
	committed("raw", "80M");
	committed("qcow2", "80M");
	ok(&site, "$D commit a --format qcow2 --backing allow --remove");
	cr_expect_eq(strangers(&site, " base before "), 0);
	refused(&site, 1, "stands on no image",
		"qemu-img create -q -f qcow2 n 1M; "
		"$D commit n --format qcow2 --backing allow");
	refused(&site, 2, "stands on none", "$D commit base --format raw --backing allow");
}

/* Wherever it is stopped, the overlay reads as before and can be committed again. */
Test(copies, an_interrupted_commit_can_go_on)
{
	char byte[256];
	int out, status;
	pid_t pid;

	ok(&site, "truncate -s 200M base; head -c 200M /dev/urandom >r");
	ok(&site, "qemu-img convert -f raw -O qcow2 -c r a; "
		  "qemu-img rebase -q -u -f qcow2 -b base -F raw a");
	pid = start(&site, &out, "$D commit a --format qcow2 --backing allow --progress json 2>&1");
	(void)!read(out, byte, sizeof(byte));
	kill(pid, SIGINT);
	status = end_of(pid);
	close(out);
	cr_expect(status == 128 + SIGINT || status == 0, "%d", status);
	same("r", "raw", "a", "qcow2");
	ok(&site, "$D commit a --format qcow2 --backing allow; cmp r base");
}

/* Compression takes its time: the signal comes while it works. */
static int interrupted(int signal, const char *known)
{
	char byte[256];
	int out, status;
	pid_t pid = start(&site, &out,
			  "$D convert a b --from raw --to qcow2 --compress --overwrite "
			  "--progress json 2>&1");

	/* The first line of progress: it has begun. */
	cr_assert_gt(read(out, byte, sizeof(byte)), 0);
	cr_assert(has(byte, "progress"), "%s", byte);
	cr_assert_eq(kill(pid, signal), 0);
	status = end_of(pid);
	close(out);
	cr_expect_eq(strangers(&site, known), 0);
	/* Nobody goes on with it. */
	ok(&site, "$D resize a +512 --format raw");
	return status;
}

Test(copies, an_interrupted_convert_leaves_nothing)
{
	ok(&site, "head -c 300M /dev/urandom >a");
	cr_expect_eq(interrupted(SIGINT, " a "), 128 + SIGINT);
	cr_expect_eq(interrupted(SIGTERM, " a "), 128 + SIGTERM);
	ok(&site, "echo mine >b");
	cr_expect_eq(interrupted(SIGTERM, " a b "), 128 + SIGTERM);
	ok(&site, "grep -qx mine b");
	/* Not even a broker that gets no time to tidy up leaves a name. */
	cr_expect_eq(interrupted(SIGKILL, " a b "), 128 + SIGKILL);
	ok(&site, "grep -qx mine b");
}

Test(copies, a_reader_that_goes_away_ends_it)
{
	ok(&site, "truncate -s 64M a");
	pieces(&site, "a", 2000);
	ok(&site, "$D map a --format raw | head -n 1 | grep -q start");
}

/* btrfs in a mount namespace of its own: it goes with the last process there. */
Test(copies, what_the_file_system_can_share_is_not_copied)
{
	json_t *json;

	if (geteuid() != 0 || run(&site, "truncate -s 256M fs && mkfs.btrfs -q fs && mkdir m && "
					 "unshare -m mount -o loop fs m") != 0)
		cr_skip_test("no btrfs to be had here\n");
	ok(&site, "cat >line <<'END'\n"
		  "set -e\n"
		  "mount -o loop fs m; cd m\n"
		  "head -c 16M /dev/urandom >a; truncate -s 64M a\n"
		  "qemu-img convert -f raw -O qcow2 a q; sync\n"
		  "$D clone a b --format raw --copy --json >&2; cmp a b\n"
		  "$D clone q w --format qcow2 --copy >&2; cmp q w\n"
		  "$D convert a c --from raw --to raw >&2; cmp a c\n"
		  "$D convert q d --from qcow2 --to raw --json; cmp a d\n"
		  "$D create r 64M --format raw >&2; qemu-img create -q -f qcow2 -b r -F raw o\n"
		  "qemu-io -f qcow2 -c 'write -P 4 1M 20M' o >&2\n"
		  "$D commit o --format qcow2 --backing allow >&2\n"
		  "qemu-img compare -f qcow2 -F raw o r >&2\n"
		  "END\nunshare -m sh line");
	cr_expect(has(site.err, "\"shared\""), "%s", site.err);
	cr_expect(has(site.err, "16 MiB shared by the file system"), "%s", site.err);
	cr_expect(has(site.err, "20 MiB in"), "%s", site.err);
	json = answer(&site);
	cr_expect_eq(number(json, "copied"), 0);
	cr_expect_eq(number(json, "shared"), 16 * MIB);
	json_decref(json);
}

Test(copies, convert_to_a_block_device)
{
	char loop[64];

	if (geteuid() != 0 || run(&site, "truncate -s 64M d; losetup -f --show d") != 0)
		cr_skip_test("no loop device to be had here\n");
	snprintf(loop, sizeof(loop), "%.*s", (int)strcspn(site.out, "\n"), site.out);
	/* What was there before must not shine through. */
	run(&site, "head -c 64M /dev/urandom >%s; truncate -s 48M a", loop);
	scribble(&site, "a", "raw", 48 * MIB, 95);
	run(&site, "$D convert a %s --from raw --to raw", loop);
	cr_expect_eq(site.status, 1);
	cr_expect(has(site.err, "--overwrite"), "%s", site.err);
	run(&site, "$D convert a %s --from raw --to raw --overwrite", loop);
	cr_expect_eq(site.status, 0, "%s", site.err);
	cr_expect_eq(run(&site, "cmp -n 50331648 a %s", loop), 0, "%s", site.out);
	cr_expect_eq(run(&site, "$D convert a %s --from raw --to qcow2 --overwrite", loop), 1);
	cr_expect_eq(run(&site,
			 "truncate -s 65M a; $D convert a %s --from raw --to raw --overwrite",
			 loop),
		     1);
	cr_expect(has(site.err, "the device"), "%s", site.err);
	ok(&site, "losetup -d %s", loop);
}

/* Another file system than the source's, and one that has O_TMPFILE. */
Test(copies, convert_to_another_file_system)
{
	ok(&site, "truncate -s 8M a");
	scribble(&site, "a", "raw", 8 * MIB, 91);
	ok(&site,
	   "t=$(mktemp -d /dev/shm/corral-disk-test-XXXXXX) && $D convert a $t/b --from raw --to "
	   "raw && cmp a $t/b && $D clone a $t/c --format raw --copy && cmp a $t/c; r=$?; "
	   "rm -r $t; exit $r");
}

Test(copies, progress_is_a_bar_on_a_terminal_only)
{
	ok(&site, "head -c 64M /dev/urandom >a");
	ok(&site, "$D convert a b --from raw --to qcow2 --compress");
	cr_expect_str_empty(site.err);
	ok(&site, "$D convert a b --from raw --to qcow2 --compress --overwrite --progress bar");
	cr_expect(has(site.err, "%"), "%s", site.err);
	cr_expect(has(site.err, "/s"), "%s", site.err);
	ok(&site,
	   "script -qec '$D convert a b --from raw --to qcow2 --compress --overwrite' /dev/null");
	cr_expect(has(site.out, "convert"), "%s", site.out);
	cr_expect(has(site.out, "% "), "%s", site.out);
}
