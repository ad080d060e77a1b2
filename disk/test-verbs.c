/* SPDX-License-Identifier: Apache-2.0 */
/*
 * create, info, check, repair, resize, map, compare, probe on images of ours and of qemu-img's.
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

TestSuite(verbs, .init = init, .fini = deinit, .timeout = 120);

Test(verbs, help_names_every_verb)
{
	static const char *const verbs[] = {"create",  "info",  "check",    "repair",
					    "convert", "clone", "snapshot", "commit",
					    "resize",  "map",   "compare",  "probe"};

	ok(&site, "$D help");
	for (size_t i = 0; i < ARRAY_SIZE(verbs); i++)
		cr_expect(has(site.out, verbs[i]), "%s", verbs[i]);
	for (size_t i = 0; i < ARRAY_SIZE(verbs); i++) {
		ok(&site, "$D help %s", verbs[i]);
		cr_expect(has(site.out, "--json"), "%s", verbs[i]);
	}
}

Test(verbs, wrong_words_are_named)
{
	refused(&site, 2, "unknown verb \"creat\"", "$D creat");
	refused(&site, 2, "too few words", "$D info");
	refused(&site, 2, "unexpected word \"b\"", "$D info a b --format raw");
	refused(&site, 2, "unknown flag --frmat", "$D info a --frmat raw");
	refused(&site, 2, "--format needs a value", "$D info a --format");
	refused(&site, 2, "--json takes no value", "$D info a --json=yes");
	refused(&site, 2, "\"vmdk\" must be raw or qcow2", "$D info a --format vmdk");
	refused(&site, 2, "it is never guessed", "$D info a");
	refused(&site, 2, "\"much\" is no size", "$D create a much --format raw");
	refused(&site, 2, "multiple of 512", "$D create a 1000 --format raw");
	refused(&site, 2, "how large", "$D create a --format qcow2");
	refused(&site, 2, "power of two", "$D create a 1G --format qcow2 --cluster 5K");
	refused(&site, 2, "a raw image has no clusters",
		"$D create a 1G --format raw --cluster 64K");
	refused(&site, 2, "bar, json, none",
		"touch a; $D compare a a --format raw --progress=round");
	cr_expect_eq(strangers(&site, " a "), 0);
}

Test(verbs, what_is_no_image_is_refused)
{
	refused(&site, 1, "No such file", "$D info a --format raw");
	refused(&site, 1, "it is a directory", "$D info . --format raw");
	refused(&site, 1, "neither a file nor a block device", "$D info /dev/null --format raw");
	refused(&site, 1, "neither a file nor a block device", "mkfifo f; $D info f --format raw");
	refused(&site, 1, "qcow2", "truncate -s 1M r; $D info r --format qcow2");
}

static void created_as(const char *flags, int cluster, const char *compression)
{
	json_t *json, *qcow2;

	ok(&site, "rm -f a; $D create a 3G --format qcow2 %s", flags);
	ok(&site, "qemu-img check -f qcow2 a");
	ok(&site, "qemu-img info -f qcow2 --output=json a");
	json = answer(&site);
	cr_expect_eq(number(json, "virtual-size"), 3072 * MIB);
	cr_expect_eq(number(json, "cluster-size"), cluster);
	json_decref(json);
	ok(&site, "$D info a --format qcow2 --json");
	json = answer(&site);
	qcow2 = json_object_get(json, "qcow2");
	cr_expect_eq(number(json, "size"), 3072 * MIB);
	cr_expect_eq(number(qcow2, "cluster"), cluster);
	cr_expect_str_eq(json_string_value(json_object_get(qcow2, "compression")), compression);
	json_decref(json);
}

Test(verbs, create_qcow2)
{
	created_as("", 65536, "zlib");
	created_as("--cluster 4K", 4096, "zlib");
	created_as("--cluster=2M --compression zstd", 2 << 20, "zstd");
	created_as("--lazy-refcounts", 65536, "zlib");
	ok(&site, "qemu-img info -f qcow2 a");
	cr_expect(has(site.out, "lazy refcounts: true"));
}

Test(verbs, create_raw_is_sparse)
{
	json_t *json;

	ok(&site, "$D create a 3G --format raw");
	ok(&site, "$D info a --format raw --json");
	json = answer(&site);
	cr_expect_eq(number(json, "size"), 3072 * MIB);
	cr_expect_lt(number(json, "allocated"), 65536);
	cr_expect_null(json_object_get(json, "qcow2"));
	json_decref(json);
}

Test(verbs, create_does_not_overwrite)
{
	ok(&site, "echo mine >a");
	refused(&site, 1, "--overwrite", "$D create a 1G --format qcow2");
	ok(&site, "grep -qx mine a");
	ok(&site, "$D create a 1G --format qcow2 --overwrite");
	ok(&site, "qemu-img check -f qcow2 a");
	cr_expect_eq(strangers(&site, " a "), 0);
}

Test(verbs, info_reads_for_people)
{
	ok(&site, "qemu-img create -q -f qcow2 a 1G");
	ok(&site, "qemu-img snapshot -c before a; qemu-img snapshot -c after a");
	ok(&site, "$D info a --format qcow2");
	cr_expect(has(site.out, "1 GiB (1073741824 bytes)"), "%s", site.out);
	cr_expect(has(site.out, "64 KiB"));
	cr_expect(has(site.out, "before"));
	cr_expect(has(site.out, "after"));
	ok(&site, "$D info a --format qcow2 --json");
	json_t *json = answer(&site);
	cr_expect_eq(json_array_size(json_object_get(json, "snapshots")), 2);
	json_decref(json);
}

Test(verbs, probe_reads_a_descriptor)
{
	json_t *json;

	ok(&site, "qemu-img create -q -f raw base 2G");
	ok(&site, "qemu-img create -q -f qcow2 -b base -F raw a 3G");
	ok(&site, "$D probe --fd 7 --format qcow2 7<a");
	json = answer(&site);
	cr_expect_eq(number(json, "size"), 3072 * MIB);
	cr_expect_str_eq(json_string_value(json_object_get(json, "format")), "qcow2");
	json_t *backing = json_object_get(json, "backing");
	cr_expect_str_eq(json_string_value(json_object_get(backing, "name")), "base");
	cr_expect_str_eq(json_string_value(json_object_get(backing, "format")), "raw");
	json_decref(json);
	ok(&site, "$D probe --fd 7 --format raw 7<base");
	json = answer(&site);
	cr_expect_eq(number(json, "size"), 2048 * MIB);
	cr_expect_null(json_object_get(json, "backing"));
	json_decref(json);
	refused(&site, 1, "\"disk0\"", "$D probe --fd 7 --name disk0 --format qcow2 7<base");
	refused(&site, 1, "descriptor 9", "$D probe --fd 9 --format raw 9<&-");
	refused(&site, 2, "--fd", "$D probe --format raw");
}

Test(verbs, map_agrees_with_qemu)
{
	static const char *const clusters[] = {"4k", "64k", "2M"};

	for (size_t i = 0; i < ARRAY_SIZE(clusters); i++) {
		ok(&site, "qemu-img create -q -f qcow2 -o cluster_size=%s a 256M", clusters[i]);
		scribble(&site, "a", "qcow2", 256 * MIB, 100 + (unsigned int)i);
		maps_agree(&site, "a", "qcow2");
		ok(&site, "qemu-img convert -c -f qcow2 -O qcow2 -o cluster_size=%s a c",
		   clusters[i]);
		maps_agree(&site, "c", "qcow2");
		ok(&site, "qemu-img create -q -f qcow2 -b a -F qcow2 o");
		scribble(&site, "o", "qcow2", 256 * MIB, 200 + (unsigned int)i);
		maps_agree(&site, "o", "qcow2");
	}
	ok(&site, "truncate -s 256M r");
	scribble(&site, "r", "raw", 256 * MIB, 300);
	maps_agree(&site, "r", "raw");
}

Test(verbs, map_without_a_chain_is_of_the_image_alone)
{
	ok(&site,
	   "qemu-img create -q -f raw base 1M; qemu-io -f raw -c 'write 0 1M' base >/dev/null");
	ok(&site, "qemu-img create -q -f qcow2 -b base -F raw a");
	ok(&site, "$D map a --format qcow2 --json");
	cr_expect(has(site.out, "\"kind\": \"absent\""));
	cr_expect(!has(site.out, "\"kind\": \"data\""));
}

Test(verbs, map_of_many_extents)
{
	json_t *json;

	ok(&site, "$D create a 64M --format raw");
	pieces(&site, "a", 1500);
	ok(&site, "$D map a --format raw --json");
	json = answer(&site);
	cr_expect_eq(json_array_size(json_object_get(json, "extents")), 3000);
	json_decref(json);
	maps_agree(&site, "a", "raw");
}

Test(verbs, compare_tells_the_first_difference)
{
	json_t *json;

	ok(&site, "qemu-img create -q -f qcow2 a 256M");
	scribble(&site, "a", "qcow2", 256 * MIB, 1);
	ok(&site, "qemu-img convert -f qcow2 -O raw a b");
	ok(&site, "$D compare a b --format qcow2 --second raw");
	ok(&site, "qemu-io -f raw -c 'write -P 77 200000000 1' -c 'write -P 78 100000000 1' b "
		  ">/dev/null");
	cr_expect_eq(run(&site, "$D compare a b --format qcow2 --second raw --json"), 3, "%s",
		     site.err);
	json = answer(&site);
	cr_expect(json_is_false(json_object_get(json, "same")));
	cr_expect_eq(number(json, "offset"), 100000000);
	json_decref(json);
}

Test(verbs, compare_of_sizes)
{
	ok(&site, "qemu-img create -q -f qcow2 a 64M; qemu-img create -q -f qcow2 b 96M");
	ok(&site, "qemu-io -f qcow2 -c 'write 1M 1M' a >/dev/null");
	ok(&site, "qemu-io -f qcow2 -c 'write 1M 1M' b >/dev/null");
	ok(&site, "$D compare a b --format qcow2");
	ok(&site, "qemu-io -f qcow2 -c 'write 80M 1M' b >/dev/null");
	cr_expect_eq(run(&site, "$D compare a b --format qcow2"), 3);
	cr_expect(has(site.out, "differ at byte 83886080"), "%s", site.out);
}

Test(verbs, resize_grows_with_zeroes)
{
	static const char *const formats[] = {"raw", "qcow2"};

	for (size_t i = 0; i < ARRAY_SIZE(formats); i++) {
		const char *format = formats[i];

		ok(&site, "qemu-img create -q -f %s a 64M", format);
		scribble(&site, "a", format, 64 * MIB, 5);
		ok(&site, "cp a b; qemu-img resize -q -f %s b 200M", format);
		ok(&site, "$D resize a +136M --format %s", format);
		ok(&site, "qemu-img compare -f %s -F %s a b", format, format);
		ok(&site, "$D compare a b --format %s", format);
		refused(&site, 1, "--shrink", "$D resize a 32M --format %s", format);
		refused(&site, 1, "cannot take", "$D resize a -300M --format %s", format);
		ok(&site, "$D resize a 32M --shrink --format %s", format);
		ok(&site, "qemu-img resize -q --shrink -f %s b 32M", format);
		ok(&site, "qemu-img compare -f %s -F %s a b", format, format);
		ok(&site, "$D check a --format %s", format);
		ok(&site, "rm a b");
	}
}

Test(verbs, what_grows_does_not_show_what_is_under_it)
{
	ok(&site, "truncate -s 128M base; qemu-io -f raw -c 'write -P 9 100M 1M' base >/dev/null");
	ok(&site, "qemu-img create -q -f qcow2 -b base -F raw a 64M");
	ok(&site, "$D resize a 128M --format qcow2");
	ok(&site, "$D map a --format qcow2 --backing allow");
	cr_expect(!has(site.out, "data"), "%s", site.out);
	maps_agree(&site, "a", "qcow2");
}

Test(verbs, check_finds_what_qemu_finds)
{
	ok(&site, "qemu-img create -q -f qcow2 a 64M");
	scribble(&site, "a", "qcow2", 64 * MIB, 9);
	ok(&site, "$D check a --format qcow2");
	cr_expect(has(site.out, "nothing is wrong"), "%s", site.out);
	/* The refcount block is the third cluster: a count for the last cluster of it is a leak. */
	ok(&site, "printf '\\000\\001' | dd of=a bs=1 seek=$((2 * 65536 + 1000 * 2)) conv=notrunc "
		  "status=none; truncate -s $((1001 * 65536)) a");
	cr_expect_eq(run(&site, "qemu-img check -f qcow2 a"), 3);
	cr_expect_eq(run(&site, "$D check a --format qcow2"), 3, "%s%s", site.out, site.err);
	cr_expect_eq(run(&site, "$D check a --format qcow2 --json"), 3);
	json_t *json = answer(&site);
	cr_expect_eq(number(json, "leaks"), 1);
	cr_expect_eq(number(json, "corruptions"), 0);
	json_decref(json);
	ok(&site, "$D repair a --format qcow2");
	ok(&site, "qemu-img check -f qcow2 a");
}

Test(verbs, check_and_repair_corruption)
{
	ok(&site,
	   "qemu-img create -q -f qcow2 a 64M; qemu-io -f qcow2 -c 'write -P 5 0 1M' a >/dev/null");
	ok(&site, "cp a b");
	/* Counts of zero for what is in use. */
	ok(&site,
	   "dd if=/dev/zero of=a bs=1 count=8 seek=$((2 * 65536 + 10)) conv=notrunc status=none");
	cr_expect_eq(run(&site, "qemu-img check -f qcow2 a"), 2);
	cr_expect_eq(run(&site, "$D check a --format qcow2"), 4, "%s%s", site.out, site.err);
	ok(&site, "$D repair a --format qcow2");
	ok(&site, "qemu-img check -f qcow2 a");
	ok(&site, "qemu-img compare -f qcow2 -F qcow2 a b");
}

Test(verbs, an_image_in_use_is_left_alone)
{
	int out;
	pid_t pid;
	char byte;

	ok(&site, "$D create a 64M --format raw");
	/* Holds the lock that a VM would. */
	pid = start(&site, &out,
		    "python3 -c 'import fcntl, os, struct, sys; fd = os.open(\"a\", os.O_RDWR); "
		    "fcntl.fcntl(fd, 37, struct.pack(\"hhqqi\", 1, 0, 0x7e636f7272616c, 1, 0)); "
		    "print(1, flush=True); os.kill(os.getpid(), 19); sys.stdin.read()'");
	cr_assert_eq(read(out, &byte, 1), 1);
	refused(&site, 1, "another VM", "$D info a --format raw");
	ok(&site, "$D info a --format raw --force");
	refused(&site, 1, "another VM", "$D resize a 128M --format raw");
	refused(&site, 1, "another VM", "$D snapshot a o --format raw");
	refused(&site, 1, "has it open", "$D create a 1G --format raw --overwrite");
	cr_expect_eq(kill(pid, SIGKILL), 0);
	end_of(pid);
	close(out);
	ok(&site, "$D info a --format raw");
	cr_expect_eq(strangers(&site, " a "), 0);
}
