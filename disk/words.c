/* SPDX-License-Identifier: Apache-2.0 */
/*
 * In: a command line. Out: struct words, or one sentence that names the word.
 */
#include "disk/words.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "block/block.h"

struct flag {
	const char *name;  /* without its dashes */
	const char *value; /* what a person calls it; NULL: takes none */
	const char *help;
	int (*set)(struct words *words, const struct flag *flag, const char *value,
		   struct error *err);
	size_t offset;
};

static int set_true(struct words *words, const struct flag *flag, const char *value _unused_,
		    struct error *err _unused_)
{
	*(bool *)((char *)words + flag->offset) = true;
	return 0;
}

static int set_word(struct words *words, const struct flag *flag, const char *value,
		    struct error *err _unused_)
{
	*(const char **)((char *)words + flag->offset) = value;
	return 0;
}

static int set_format(struct words *words, const struct flag *flag, const char *value,
		      struct error *err)
{
	if (strcmp(value, "raw") != 0 && strcmp(value, "qcow2") != 0)
		return error_set(err, -EINVAL, "--%s: \"%s\" must be raw or qcow2", flag->name,
				 value);
	return set_word(words, flag, value, err);
}

static int set_compression(struct words *words, const struct flag *flag, const char *value,
			   struct error *err)
{
	if (strcmp(value, "zlib") != 0 && strcmp(value, "zstd") != 0)
		return error_set(err, -EINVAL, "--compression: \"%s\" must be zlib or zstd", value);
	return set_word(words, flag, value, err);
}

static int set_backing(struct words *words, const struct flag *flag _unused_, const char *value,
		       struct error *err)
{
	if (strcmp(value, "allow") != 0 && strcmp(value, "refuse") != 0)
		return error_set(err, -EINVAL, "--backing: \"%s\" must be allow or refuse", value);
	words->allow_backing = !strcmp(value, "allow");
	return 0;
}

static int set_cluster(struct words *words, const struct flag *flag _unused_, const char *value,
		       struct error *err)
{
	if (size_parse(value, &words->cluster) < 0 || words->cluster < 4096 ||
	    words->cluster > (2u << 20) || (words->cluster & (words->cluster - 1)))
		return error_set(err, -EINVAL,
				 "--cluster: \"%s\" must be a power of two from 4K to 2M", value);
	return 0;
}

static int set_fd(struct words *words, const struct flag *flag _unused_, const char *value,
		  struct error *err)
{
	char *end;
	unsigned long number = strtoul(value, &end, 10);

	if (end == value || *end || number > 1u << 20)
		return error_set(err, -EINVAL, "--fd: \"%s\" is no descriptor's number", value);
	words->fd = (uint32_t)number;
	words->fd_said = true;
	return 0;
}

#define AT(member) offsetof(struct words, member)
static const struct flag flags[] = {
	{"format", "raw|qcow2", "the format of the image: it is never guessed", set_format,
	 AT(format)},
	{"second", "raw|qcow2", "the second image's, if it is another", set_format,
	 AT(second_format)},
	{"from", "raw|qcow2", "the format of the image that is read", set_format, AT(from)},
	{"to", "raw|qcow2", "the format of the image that is made", set_format, AT(to)},
	{"base", "FILE", "the image it stands on", set_word, AT(base)},
	{"base-format", "raw|qcow2", "that image's format", set_format, AT(base_format)},
	{"backing", "allow|refuse", "are files opened that an image names? (refuse)", set_backing,
	 0},
	{"backing-format", "raw|qcow2", "theirs, where the image does not say it", set_format,
	 AT(backing_format)},
	{"snapshot", "ID", "read what this internal snapshot holds", set_word, AT(snapshot)},
	{"cluster", "SIZE", "cluster size of the qcow2 image that is made, 4K to 2M (64K)",
	 set_cluster, 0},
	{"compress", NULL, "write compressed clusters", set_true, AT(compress)},
	{"compression", "zlib|zstd", "how clusters of the image that is made are compressed (zlib)",
	 set_compression, AT(compression)},
	{"lazy-refcounts", NULL, "write reference counts late; a crash then needs a repair",
	 set_true, AT(lazy_refcounts)},
	{"copy", NULL, "an image of its own: shared by the file system if it can, else copied",
	 set_true, AT(copy)},
	{"overwrite", NULL, "replace a file that is there; write to a block device", set_true,
	 AT(overwrite)},
	{"shrink", NULL, "let what lies behind the new end be lost", set_true, AT(shrink)},
	{"leaks", NULL, "mend lost clusters only, nothing that is wrong", set_true, AT(leaks)},
	{"remove", NULL, "remove the overlay once it is in its backing image", set_true,
	 AT(remove)},
	{"force", NULL, "look at an image that a VM is writing; what is read may be torn", set_true,
	 AT(force)},
	{"fd", "N", "the image is open as this descriptor", set_fd, 0},
	{"name", "TEXT", "what to call it in sentences", set_word, AT(name)},
	{"json", NULL, "print JSON", set_true, AT(json)},
	{"progress", "bar|json|none", "on standard error (bar if that is a terminal)", set_word,
	 AT(progress)},
	{"verbose", NULL, "-v: say how the process that reads images is sealed", set_true,
	 AT(verbose)},
};

static bool takes(const struct disk_verb *verb, const struct flag *flag)
{
	const char *at = verb->flags;
	size_t length = strlen(flag->name);

	while ((at = strstr(at, flag->name))) {
		if (at[-1] == ' ' && at[length] == ' ')
			return true;
		at += length;
	}
	return false;
}

static const struct flag *find(const struct disk_verb *verb, const char *word, size_t length)
{
	for (size_t i = 0; i < ARRAY_SIZE(flags); i++)
		if (strlen(flags[i].name) == length && !memcmp(flags[i].name, word, length) &&
		    takes(verb, &flags[i]))
			return &flags[i];
	return NULL;
}

static int take_flag(struct job *job, const char *word, int *i, int argc, char **argv,
		     struct error *err)
{
	size_t length = strcspn(word, "=");
	const char *value = word[length] ? word + length + 1 : NULL;
	const struct flag *flag = find(job->verb, word, length);

	if (!flag)
		return error_set(err, -EINVAL, "unknown flag --%.*s, see `corral disk help %s`",
				 (int)MIN(length, (size_t)60), word, job->verb->name);
	if (!flag->value && value)
		return error_set(err, -EINVAL, "--%s takes no value", flag->name);
	if (flag->value && !value && ++*i < argc)
		value = argv[*i];
	if (flag->value && !value)
		return error_set(err, -EINVAL, "--%s needs a value: --%s %s", flag->name,
				 flag->name, flag->value);
	return flag->set(&job->words, flag, value, err);
}

static int take_word(struct job *job, const char *word, struct error *err)
{
	if (job->words.n_names == job->verb->names_max)
		return error_set(err, -EINVAL, "unexpected word \"%s\": corral disk %s %s", word,
				 job->verb->name, job->verb->words);
	if (!word[0])
		return error_set(err, -EINVAL, "a name is empty: corral disk %s %s",
				 job->verb->name, job->verb->words);
	job->words.names[job->words.n_names++] = word;
	return 0;
}

/* "-1G" is a size, for resize. */
static bool is_flag(const char *word)
{
	return word[0] == '-' && (word[1] < '0' || word[1] > '9') && word[1];
}

int words_parse(struct job *job, int argc, char **argv, struct error *err)
{
	bool names_only = false;
	int r = 0;

	for (int i = 0; i < argc && r == 0; i++) {
		const char *word = argv[i];

		if (!names_only && !strcmp(word, "--"))
			names_only = true;
		else if (names_only || !is_flag(word))
			r = take_word(job, word, err);
		else if (!strcmp(word, "-v"))
			job->words.verbose = true;
		else if (!strncmp(word, "--", 2))
			r = take_flag(job, word + 2, &i, argc, argv, err);
		else
			r = error_set(err, -EINVAL, "unknown flag %s, see `corral disk help %s`",
				      word, job->verb->name);
	}
	if (r == 0 && job->words.n_names < job->verb->names_min)
		r = error_set(err, -EINVAL, "too few words: corral disk %s %s", job->verb->name,
			      job->verb->words);
	return r;
}

void words_help(const struct disk_verb *verb)
{
	printf("corral disk %s %s\n  %s\n", verb->name, verb->words, verb->help);
	if (verb->more)
		printf("\n%s\n", verb->more);
	printf("\n");
	for (size_t i = 0; i < ARRAY_SIZE(flags); i++) {
		const struct flag *flag = &flags[i];
		int width;

		if (!takes(verb, flag))
			continue;
		width = printf("  --%s%s%s", flag->name, flag->value ? " " : "",
			       flag->value ? flag->value : "");
		if (width > 30)
			printf("\n%-32s%s\n", "", flag->help);
		else
			printf("%*s%s\n", 32 - width, "", flag->help);
	}
}

int words_need_format(const char *format, const char *flag, const char *name, struct error *err)
{
	if (format)
		return 0;
	return error_set(err, -EINVAL,
			 "in which format is \"%s\"? say %s raw or %s qcow2: it is never guessed",
			 name, flag, flag);
}

int words_size(const char *text, uint64_t *ret_size, struct error *err)
{
	uint64_t size;

	if (size_parse(text, &size) < 0 || !size)
		return error_set(err, -EINVAL, "\"%s\" is no size: 20G, 512M, or a number of bytes",
				 text);
	if (size % BLOCK_SECTOR || size > (UINT64_C(1) << 62))
		return error_set(
			err, -EINVAL,
			"a disk cannot have %s bytes: it must be a multiple of %u, at most "
			"2 to the 62nd",
			text, BLOCK_SECTOR);
	*ret_size = size;
	return 0;
}

uint32_t words_cluster_bits(const struct words *words)
{
	return words->cluster ? (uint32_t)__builtin_ctzll(words->cluster) : 0;
}
