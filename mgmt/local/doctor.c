/* SPDX-License-Identifier: Apache-2.0 */
/*
 * `corral doctor`: runs the checks of its table and prints what they found, a line each and the
 * command that mends what is not there. Exit status 0: VMs can run here.
 */
#include "mgmt/local/doctor.h"

#include <jansson.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <unistd.h>

#include "mgmt/local/flags.h"
#include "mgmt/local/local.h"
#include "mgmt/local/tree.h"

struct doctor {
	bool json;
};

static const struct flag doctor_flags[] = {
	{"--json", NULL, "", flag_set_true, .offset = offsetof(struct doctor, json)},
};

static const char *const state_words[] = {"ok", "limited", "missing"};
static const char *const state_colours[] = {"\033[32m", "\033[33m", "\033[31m"};

void finding_set(struct finding *finding, enum finding_state state, const char *format, ...)
{
	va_list list;

	finding->state = state;
	va_start(list, format);
	vsnprintf(finding->text, sizeof(finding->text), format, list);
	va_end(list);
}

void finding_mend(struct finding *finding, const char *format, ...)
{
	va_list list;

	va_start(list, format);
	vsnprintf(finding->mend, sizeof(finding->mend), format, list);
	va_end(list);
}

static void finding_print(const struct check *check, const struct finding *finding)
{
	bool colour = isatty(STDOUT_FILENO);

	printf("%-18s%s%-9s%s%s\n", check->name, colour ? state_colours[finding->state] : "",
	       state_words[finding->state], colour ? "\033[0m" : "", finding->text);
	if (finding->mend[0])
		printf("%-27s-> %s\n", "", finding->mend);
}

static int finding_json(json_t *list, const struct check *check, const struct finding *finding)
{
	json_t *json = json_pack("{s:s, s:s, s:s, s:s, s:b}", "name", check->name, "state",
				 state_words[finding->state], "text", finding->text, "purpose",
				 check->purpose, "needed", check->needed);

	if (json && finding->mend[0])
		json_object_set_new(json, "mend", json_string(finding->mend));
	return json_array_append_new(list, json);
}

/* True if nothing that is needed is missing. */
static bool doctor_run(json_t *list)
{
	bool able = true;

	for (size_t i = 0; i < n_doctor_checks; i++) {
		const struct check *check = &doctor_checks[i];
		struct finding finding = {};

		check->look(&finding);
		if (list)
			finding_json(list, check, &finding);
		else
			finding_print(check, &finding);
		able &= !check->needed || finding.state != FINDING_MISSING;
	}
	return able;
}

int verb_doctor(int argc, char **argv)
{
	struct doctor doctor = {};
	struct error err = ERROR_NULL;
	json_t *answer, *list;
	bool able;

	if (flags_parse(doctor_flags, ARRAY_SIZE(doctor_flags), &doctor, argc, argv, NULL, &err) <
	    0)
		return local_fail(&err, LOCAL_USAGE);
	if (!doctor.json) {
		able = doctor_run(NULL);
		printf("\n%s\n", able ? "VMs can run here."
				      : "VMs cannot run here: see what is missing above.");
		return able ? LOCAL_OK : LOCAL_FAILED;
	}
	list = json_array();
	able = doctor_run(list);
	answer = json_pack("{s:b, s:o}", "able", able, "checks", list);
	if (tree_print_json(answer) != LOCAL_OK)
		able = false;
	json_decref(answer);
	return able ? LOCAL_OK : LOCAL_FAILED;
}
