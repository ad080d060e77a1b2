/* SPDX-License-Identifier: Apache-2.0 */
/*
 * In: the JSON file of `corral ci`: {"defaults": {…}, "tests": [{"name": …, "command": […]}, …]}.
 * Out: the tests, each complete, or one sentence with the place of the first mistake.
 */
#include <errno.h>
#include <fcntl.h>
#include <string.h>

#include "base/fd.h"
#include "mgmt/local/ci.h"
#include "mgmt/local/job.h"

#define FILE_MAX (16 << 20)

static const struct field ci_test_fields[] = {
	FIELD(struct ci_test, name, FIELD_STRING, "name", "what to call it", .max = 200),
	FIELD(struct ci_test, rootfs, FIELD_STRING, "rootfs", "its root: a directory or an image"),
	FIELD(struct ci_test, kernel, FIELD_STRING, "kernel", "its guest's kernel"),
	FIELD(struct ci_test, append, FIELD_STRING, "append", "added to the kernel's command line",
	      .max = VM_APPEND_MAX),
	FIELD(struct ci_test, modules, FIELD_STRING, "modules", "the kernel's modules"),
	FIELD(struct ci_test, timeout, FIELD_STRING, "timeout", "how long it may take", .max = 20),
	FIELD(struct ci_test, cwd, FIELD_STRING, "cwd", "where in the guest it starts"),
	FIELD(struct ci_test, memory, FIELD_SIZE, "memory", "its guest's memory"),
	FIELD(struct ci_test, cpus, FIELD_U32, "cpus", "its guest's vCPUs", .max = VM_CPUS_MAX),
	FIELD(struct ci_test, vsock_cid, FIELD_U32, "vsock-cid", "its guest's vsock address"),
	FIELD(struct ci_test, expect_status, FIELD_U32, "expect-status",
	      "the exit status with which it passes", .max = 255),
};

const struct table ci_test_table =
	TABLE(struct ci_test, "test", "A command in a guest of its own", ci_test_fields);

static void words_free(char **words)
{
	for (size_t i = 0; words && words[i]; i++)
		free(words[i]);
	free(words);
}

/* A test's own array takes the place of that of the defaults. */
static int texts_read(char ***texts, const json_t *json, const char *key, size_t least, size_t most,
		      struct error *err)
{
	size_t n = json_array_size(json);

	if (!json)
		return 0;
	if (!json_is_array(json) || n < least || n > most)
		return error_set(err, -EINVAL, "%s: is not an array of %zu to %zu texts", key,
				 least, most);
	words_free(*texts);
	*texts = calloc(n + 1, sizeof(char *));
	for (size_t i = 0; *texts && i < n; i++) {
		const char *text = json_string_value(json_array_get(json, i));

		if (!text)
			return error_set(err, -EINVAL, "%s[%zu]: is not a text", key, i);
		(*texts)[i] = strdup(text);
		if (!(*texts)[i])
			return -ENOMEM;
	}
	return *texts ? 0 : -ENOMEM;
}

/* Without a value (NULL) it is the launcher's own, when the test starts. */
static int environment_add(char **words, const char *name, const char *value)
{
	size_t i = 0, length = strlen(name);
	char *word;

	if (asprintf(&word, "%s%s%s", name, value ? "=" : "", value ? value : "") < 0)
		return -ENOMEM;
	while (words[i] && (strcspn(words[i], "=") != length || strncmp(words[i], name, length)))
		i++;
	free(words[i]);
	words[i] = word;
	return 0;
}

/* Names that the defaults have too get the new value. */
static int environment_read(struct ci_test *test, json_t *json, struct error *err)
{
	const char *name;
	json_t *value;
	int r = 0;

	if (!json)
		return 0;
	if (!json_is_object(json) || json_object_size(json) > JOB_ENVIRONMENT_MAX / 2)
		return error_set(err, -EINVAL, "env: is not an object of at most %d texts",
				 JOB_ENVIRONMENT_MAX / 2);
	if (!test->environment)
		test->environment = calloc(JOB_ENVIRONMENT_MAX + 1, sizeof(char *));
	if (!test->environment)
		return -ENOMEM;
	json_object_foreach(json, name, value)
	{
		if (!*name || strchr(name, '='))
			return error_set(err, -EINVAL, "env.%s: is no name of a variable", name);
		if (!json_is_string(value) && !json_is_null(value))
			return error_set(err, -EINVAL,
					 "env.%s: is neither a text nor null, which stands for the "
					 "launcher's own value",
					 name);
		r = environment_add(test->environment, name, json_string_value(value));
		if (r < 0)
			return r;
	}
	return 0;
}

/* What a table cannot say is taken out of a copy, the rest is the table's. */
static int test_read(struct ci_test *test, const json_t *json, struct error *err)
{
	const struct {
		const char *key;
		char ***texts;
		size_t least, most;
	} arrays[] = {
		{"command", &test->command, 1, JOB_WORDS_MAX},
		{"disks", &test->disks, 0, VM_DISKS_MAX - 1}, /* and the root */
		{"nets", &test->nets, 0, VM_NETS_MAX},
	};
	json_auto_t *rest = json_copy((json_t *)json);
	int r;

	if (!json_is_object(json))
		return error_set(err, -EINVAL, "is not an object");
	r = rest ? environment_read(test, json_object_get(json, "env"), err) : -ENOMEM;
	for (size_t i = 0; r >= 0 && i < ARRAY_SIZE(arrays); i++) {
		r = texts_read(arrays[i].texts, json_object_get(json, arrays[i].key), arrays[i].key,
			       arrays[i].least, arrays[i].most, err);
		json_object_del(rest, arrays[i].key);
	}
	if (r < 0)
		return r;
	json_object_del(rest, "env");
	return table_from_json(&ci_test_table, rest, test, err);
}

static int path_from(char **path, const char *file)
{
	const char *slash = strrchr(file, '/');
	char *whole;

	if (!*path || (*path)[0] == '/' || !slash || !strcmp(*path, "none"))
		return 0;
	if (asprintf(&whole, "%.*s/%s", (int)(slash - file), file, *path) < 0)
		return -ENOMEM;
	free(*path);
	*path = whole;
	return 0;
}

/* A disk's file comes first, with its commas written twice; so are those of our own directory. */
static int disk_from(char **disk, const char *file)
{
	const char *slash = strrchr(file, '/');
	char *whole, *out;

	if ((*disk)[0] == '/' || !slash)
		return 0;
	whole = out = malloc(2 * (slash - file + 1) + strlen(*disk) + 1);
	if (!whole)
		return -ENOMEM;
	for (const char *in = file; in <= slash; in++) {
		*out++ = *in;
		if (*in == ',')
			*out++ = ',';
	}
	strcpy(out, *disk);
	free(*disk);
	*disk = whole;
	return 0;
}

static int paths_complete(struct ci_test *test, const char *file)
{
	int r = path_from(&test->rootfs, file);

	if (r >= 0)
		r = path_from(&test->kernel, file);
	if (r >= 0)
		r = path_from(&test->modules, file);
	for (char **disk = test->disks; r >= 0 && disk && *disk; disk++)
		r = disk_from(disk, file);
	return r;
}

static int test_check(struct ci_test *test, const struct ci_list *list, const char *file,
		      struct error *err)
{
	uint64_t ms;

	if (!test->name || !test->name[0])
		return error_set(err, -EINVAL, "name: is missing");
	if (!test->command)
		return error_set(err, -EINVAL, "command: is missing");
	if (!test->rootfs)
		return error_set(err, -EINVAL, "rootfs: is missing, here and in the defaults");
	if (test->timeout && job_time_parse(test->timeout, &ms) < 0)
		return error_set(err, -EINVAL,
				 "timeout: \"%s\" is no time: give seconds, or as 30s, 5m, 1h",
				 test->timeout);
	for (const struct ci_test *other = list->tests; other < test; other++)
		if (!strcmp(other->name, test->name))
			return error_set(err, -EINVAL, "name: \"%s\" is there twice", test->name);
	return paths_complete(test, file);
}

static int tests_read(struct ci_list *list, const json_t *root, const char *file, struct error *err)
{
	const json_t *defaults = json_object_get(root, "defaults");
	const json_t *tests = json_object_get(root, "tests");

	list->tests = calloc(json_array_size(tests), sizeof(*list->tests));
	if (!list->tests)
		return -ENOMEM;
	for (size_t i = 0; i < json_array_size(tests); i++) {
		struct ci_test *test = &list->tests[list->n_tests++];
		int r = table_init(&ci_test_table, test);

		if (r >= 0 && defaults) {
			r = test_read(test, defaults, err);
			if (r < 0 && err->code)
				return error_prefix(err, "defaults.");
		}
		if (r >= 0)
			r = test_read(test, json_array_get(tests, i), err);
		if (r >= 0)
			r = test_check(test, list, file, err);
		if (r < 0)
			return err->code ? error_prefix(err, "tests[%zu].", i) : r;
	}
	return 0;
}

static int root_check(const json_t *root, struct error *err)
{
	const json_t *tests = json_object_get(root, "tests");
	const char *key;
	json_t *value;

	if (!json_is_object(root))
		return error_set(err, -EINVAL, "is not an object");
	json_object_foreach((json_t *)root, key, value)
	{
		if (strcmp(key, "tests") != 0 && strcmp(key, "defaults") != 0)
			return error_set(err, -EINVAL,
					 "%s: is not known; there are defaults and tests", key);
	}
	if (!json_array_size(tests) || json_array_size(tests) > CI_TESTS_MAX)
		return error_set(err, -EINVAL, "tests: is not an array of 1 to %d tests",
				 CI_TESTS_MAX);
	return 0;
}

static int text_read(struct ci_list *list, const char *path, const char *text, size_t size,
		     struct error *err)
{
	json_error_t why;
	json_auto_t *root = json_loadb(text, size, JSON_REJECT_DUPLICATES, &why);
	int r;

	if (!root)
		return error_set(err, -EINVAL, "%s:%d: %s", path, why.line, why.text);
	r = root_check(root, err);
	if (r >= 0)
		r = tests_read(list, root, path, err);
	if (r < 0 && !err->code)
		return error_set(err, r, "cannot read \"%s\": %s", path, strerror(-r));
	return r < 0 ? error_prefix(err, "%s: ", path) : 0;
}

int ci_list_read(struct ci_list *list, const char *path, struct error *err)
{
	_cleanup_(fd_closep) int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY);
	_cleanup_(freep) char *text = NULL;
	size_t size = 0;
	int r = fd < 0 ? -errno : fd_read_all(fd, FILE_MAX, &text, &size);

	*list = (struct ci_list){};
	*err = ERROR_NULL;
	if (r < 0)
		return error_set(err, r, "cannot read the list of tests \"%s\": %s", path,
				 strerror(-r));
	r = text_read(list, path, text, size, err);
	if (r < 0)
		ci_list_deinit(list);
	return r;
}

void ci_list_deinit(struct ci_list *list)
{
	for (uint32_t i = 0; i < list->n_tests; i++) {
		words_free(list->tests[i].command);
		words_free(list->tests[i].environment);
		words_free(list->tests[i].disks);
		words_free(list->tests[i].nets);
		table_deinit(&ci_test_table, &list->tests[i]);
	}
	free(take_ptr(list->tests));
	list->n_tests = 0;
}
