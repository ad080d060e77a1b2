/* SPDX-License-Identifier: Apache-2.0 */
/*
 * In: the words of a command line and a table of flags. Out: an object filled by the rows' setters,
 * or one sentence that names the word and, if one is near, the flag that was meant.
 */
#include "mgmt/local/flags.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#define NEAREST_WORD_MAX 40

int flag_set_true(void *object, const struct flag *flag, const char *value _unused_,
		  struct error *err _unused_)
{
	*(bool *)((char *)object + flag->offset) = true;
	return 0;
}

int flag_set_word(void *object, const struct flag *flag, const char *value,
		  struct error *err _unused_)
{
	*(const char **)((char *)object + flag->offset) = value;
	return 0;
}

/* Levenshtein's distance, one row at a time. */
static size_t word_distance(const char *a, const char *b)
{
	size_t row[NEAREST_WORD_MAX + 1], n = strlen(b);

	for (size_t j = 0; j <= n; j++)
		row[j] = j;
	for (size_t i = 1; a[i - 1]; i++) {
		size_t diagonal = row[0];

		row[0] = i;
		for (size_t j = 1; j <= n; j++) {
			size_t change = diagonal + (a[i - 1] != b[j - 1]);
			size_t skip = MIN(row[j], row[j - 1]) + 1;

			diagonal = row[j];
			row[j] = MIN(change, skip);
		}
	}
	return row[n];
}

const char *nearest(const char *word, const char *(*candidate)(const void *list, size_t i),
		    const void *list)
{
	const char *best = NULL, *name;
	size_t length = strlen(word), least;

	if (length > NEAREST_WORD_MAX)
		return NULL;
	least = MIN(length / 3 + 2, (size_t)3); /* further away is another word, not a slip */
	for (size_t i = 0; (name = candidate(list, i)); i++) {
		size_t distance;

		if (strlen(name) > NEAREST_WORD_MAX)
			continue;
		distance = word_distance(word, name);
		if (distance < least) {
			least = distance;
			best = name;
		}
	}
	return best;
}

struct flag_list {
	const struct flag *flags;
	size_t n_flags;
};

static const char *flag_candidate(const void *list, size_t i)
{
	const struct flag_list *flags = list;

	return i < flags->n_flags ? flags->flags[i].name : NULL;
}

static const struct flag *flag_find(const struct flag_list *list, const char *word, size_t length)
{
	for (size_t i = 0; i < list->n_flags; i++)
		if (strlen(list->flags[i].name) == length &&
		    !memcmp(list->flags[i].name, word, length))
			return &list->flags[i];
	return NULL;
}

static int flag_unknown(const struct flag_list *list, const char *verb, const char *word,
			size_t length, struct error *err)
{
	char text[NEAREST_WORD_MAX + 1];
	const char *near;

	snprintf(text, sizeof(text), "%.*s", (int)length, word);
	near = nearest(text, flag_candidate, list);
	if (near)
		return error_set(err, -EINVAL, "unknown flag %s, did you mean %s?", text, near);
	return error_set(err, -EINVAL, "unknown flag %s, see `corral help %s`", text, verb);
}

int flags_parse(const struct flag *flags, size_t n_flags, void *object, int argc, char **argv,
		const char **ret_name, struct error *err)
{
	struct flag_list list = {flags, n_flags};

	for (int i = 1; i < argc; i++) {
		const char *word = argv[i], *value;
		size_t length = strcspn(word, "=");
		const struct flag *flag;
		int r;

		if (word[0] != '-') {
			if (!ret_name || *ret_name)
				return error_set(err, -EINVAL, "unexpected word \"%s\"", word);
			*ret_name = word;
			continue;
		}
		flag = flag_find(&list, word, length);
		if (!flag)
			return flag_unknown(&list, argv[0], word, length, err);
		value = word[length] ? word + length + 1 : NULL;
		if (!flag->value && value)
			return error_set(err, -EINVAL, "%s takes no value", flag->name);
		if (flag->value && !value && ++i < argc)
			value = argv[i];
		if (flag->value && !value)
			return error_set(err, -EINVAL, "%s needs a value: %s %s", flag->name,
					 flag->name, flag->value);
		r = flag->set(object, flag, value, err);
		if (r < 0)
			return r;
	}
	return 0;
}

void flags_help(const struct flag *flags, size_t n_flags)
{
	for (size_t i = 0; i < n_flags; i++) {
		int width = printf("  %s%s%s", flags[i].name, flags[i].value ? " " : "",
				   flags[i].value ? flags[i].value : "");

		if (width > 26)
			printf("\n%-28s%s\n", "", flags[i].help);
		else
			printf("%*s%s\n", 28 - width, "", flags[i].help);
	}
}
