/* SPDX-License-Identifier: Apache-2.0 */
/*
 * In: results, with words and output of guests that may hold any byte. Out: well-formed XML, or
 * TAP. What XML 1.0 cannot hold becomes '?'.
 */
#include "mgmt/local/ci-report.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* The length of the character that begins here and that XML may hold; 0 for none. */
static size_t xml_character(const char *at)
{
	const unsigned char *c = (const unsigned char *)at;
	size_t n = c[0] < 0x80                   ? 1
		   : c[0] >= 0xc2 && c[0] < 0xe0 ? 2
		   : c[0] >= 0xe0 && c[0] < 0xf0 ? 3
		   : c[0] >= 0xf0 && c[0] < 0xf5 ? 4
						 : 0;

	if (n == 1)
		return c[0] >= 0x20 || c[0] == '\n' || c[0] == '\t';
	if (!n || strnlen(at, n) < n || !text_is_utf8(at, n))
		return 0;
	/* U+FFFE and U+FFFF are no characters. */
	return n == 3 && c[0] == 0xef && c[1] == 0xbf && c[2] >= 0xbe ? 0 : n;
}

static void xml_text(FILE *file, const char *text)
{
	static const struct {
		char character;
		const char *name;
	} names[] = {{'<', "&lt;"}, {'>', "&gt;"}, {'&', "&amp;"}, {'"', "&quot;"}};

	while (*text) {
		size_t n = xml_character(text);
		const char *name = NULL;

		for (size_t i = 0; i < ARRAY_SIZE(names); i++)
			if (*text == names[i].character)
				name = names[i].name;
		if (name)
			fputs(name, file);
		else if (n)
			fwrite(text, 1, n, file);
		else
			putc('?', file);
		text += MAX(n, (size_t)1);
	}
}

static void xml_output(FILE *file, const char *tag, const struct job_kept *kept)
{
	_cleanup_(freep) char *text = kept->n ? job_kept_text(kept) : NULL;

	if (!text)
		return;
	fprintf(file, "    <%s>", tag);
	xml_text(file, text);
	fprintf(file, "</%s>\n", tag);
}

static bool is_failure(const struct ci_result *result)
{
	return !result->passed && result->job.outcome != JOB_BROKEN &&
	       result->job.outcome != JOB_INTERRUPTED;
}

static void xml_case(FILE *file, const char *suite, const struct ci_result *result)
{
	const char *tag = is_failure(result) ? "failure" : "error";

	fprintf(file, "  <testcase classname=\"");
	xml_text(file, suite);
	fprintf(file, "\" name=\"");
	xml_text(file, result->name);
	fprintf(file, "\" time=\"%llu.%03llu\">\n", (unsigned long long)(result->job.ms / 1000),
		(unsigned long long)(result->job.ms % 1000));
	if (!result->passed) {
		fprintf(file, "    <%s type=\"%s\" message=\"", tag,
			job_outcome_names[result->job.outcome]);
		xml_text(file, result->job.text);
		fprintf(file, "\"/>\n");
	}
	xml_output(file, "system-out", &result->job.out);
	xml_output(file, "system-err", &result->job.err);
	fprintf(file, "  </testcase>\n");
}

static void xml_suite(FILE *file, const char *suite, const struct ci_result *results, size_t n)
{
	size_t failures = 0, errors = 0;
	uint64_t ms = 0;

	for (size_t i = 0; i < n; i++) {
		failures += is_failure(&results[i]);
		errors += !results[i].passed && !is_failure(&results[i]);
		ms += results[i].job.ms;
	}
	fprintf(file, "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuite name=\"");
	xml_text(file, suite);
	fprintf(file,
		"\" tests=\"%zu\" failures=\"%zu\" errors=\"%zu\" skipped=\"0\" "
		"time=\"%llu.%03llu\">\n",
		n, failures, errors, (unsigned long long)(ms / 1000),
		(unsigned long long)(ms % 1000));
	for (size_t i = 0; i < n; i++)
		xml_case(file, suite, &results[i]);
	fprintf(file, "</testsuite>\n");
}

/* A pipe or a device cannot be renamed over. */
static bool is_special(const char *path)
{
	struct stat st;

	return !stat(path, &st) && !S_ISREG(st.st_mode);
}

static int junit_refuse(const char *path, int code, struct error *err)
{
	return error_set(err, code, "cannot write the report \"%s\": %s", path, strerror(-code));
}

int ci_junit_write(const char *path, const char *suite, const struct ci_result *results, size_t n,
		   struct error *err)
{
	char beside[PATH_MAX];
	FILE *file;
	int r;

	snprintf(beside, sizeof(beside), is_special(path) ? "%s" : "%s.new", path);
	file = fopen(beside, "we");
	if (!file)
		return junit_refuse(path, -errno, err);
	xml_suite(file, suite, results, n);
	r = fflush(file) || ferror(file) ? -(errno ? errno : EIO) : 0;
	if (fclose(file) && r >= 0)
		r = -errno;
	if (r >= 0 && strcmp(beside, path) != 0 && rename(beside, path) < 0)
		r = -errno;
	if (r < 0 && strcmp(beside, path) != 0)
		unlink(beside);
	return r < 0 ? junit_refuse(path, r, err) : 0;
}

/* In TAP '#' starts a directive. */
static void tap_name(FILE *file, const char *name)
{
	for (; *name; name++)
		putc(*name == '#' || *name == '\n' ? '_' : *name, file);
}

void ci_tap_print(FILE *file, const struct ci_result *results, size_t n)
{
	fprintf(file, "TAP version 13\n1..%zu\n", n);
	for (size_t i = 0; i < n; i++) {
		fprintf(file, "%sok %zu - ", results[i].passed ? "" : "not ", i + 1);
		tap_name(file, results[i].name);
		if (!results[i].passed)
			fprintf(file, "\n# %s", results[i].job.text);
		putc('\n', file);
	}
}
