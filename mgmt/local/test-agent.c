/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The guest agent's protocol against agents that answer, refuse, lie, flood, stop half-way and say
 * nothing: a child at the other end of a socket that reads requests and plays one of them.
 */
#include <criterion/criterion.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/fd.h"
#include "mgmt/local/agent.h"
#include "mgmt/local/guest.h"

#define SHORT_MS 300
#define LONG_MS  10000

static struct agent agent;
static struct error err;
static pid_t player;

/* One line, as the agent reads it: delimiters fall away. */
static bool ask(int fd, char line[1024])
{
	size_t n = 0;
	char c;

	while (read(fd, &c, 1) == 1) {
		if (c == '\n') {
			line[n] = '\0';
			return true;
		}
		if (c != '\xff' && n < 1023)
			line[n++] = c;
	}
	return false;
}

static void say(int fd, const char *text)
{
	if (fd_write_full(fd, text, strlen(text)) < 0)
		_exit(1);
}

/* Repeats the number of a guest-sync-delimited, with what the test puts around it. */
static void repeat(int fd, const char *line, long more)
{
	const char *id = strstr(line, "\"id\":");
	char answer[64];

	snprintf(answer, sizeof(answer), "\xff{\"return\": %ld}\n", id ? atol(id + 5) + more : 0);
	say(fd, answer);
}

static void play(void (*part)(int fd))
{
	int ends[2];

	cr_assert_eq(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), 0);
	player = fork();
	cr_assert_geq(player, 0);
	if (player == 0) {
		signal(SIGPIPE, SIG_DFL);
		fd_close(ends[0]);
		part(ends[1]);
		_exit(0);
	}
	fd_close(ends[1]);
	err = ERROR_NULL;
	agent_init(&agent, ends[0], "web");
}

static void end(void)
{
	agent_deinit(&agent);
	if (player > 0) {
		kill(player, SIGKILL);
		waitpid(player, NULL, 0);
	}
}

TestSuite(agent, .fini = end, .timeout = 60);

static void expect_text(const char *part)
{
	cr_assert(strstr(err.text, part), "\"%s\" is not in \"%s\"", part, err.text);
}

/* ---- agents that mean well ---- */

static void good(int fd)
{
	char line[1024];

	while (ask(fd, line)) {
		if (strstr(line, "guest-sync"))
			repeat(fd, line, 0);
		else if (strstr(line, "guest-ping"))
			say(fd, "{\"return\": {}}\n");
		else if (strstr(line, "guest-echo"))
			say(fd, strstr(line, "\"arguments\":{\"a\":1}") ? "{\"return\": 7}\n"
									: "{\"return\": 8}\n");
		else
			say(fd, "{\"error\": {\"class\": \"CommandNotFound\", \"desc\": \"The "
				"command x\\u001b[2J has not been found\"}}\n");
	}
}

Test(agent, answers)
{
	json_t *result = NULL;

	play(good);
	cr_assert_eq(agent_sync(&agent, LONG_MS, &err), 0, "%s", err.text);
	cr_assert_eq(agent_call(&agent, "guest-ping", NULL, LONG_MS, NULL, &err), 0);
	cr_assert_eq(agent_call(&agent, "guest-echo", json_pack("{s:i}", "a", 1), LONG_MS, &result,
				&err),
		     0);
	cr_assert_eq(json_integer_value(result), 7);
	json_decref(result);
}

Test(agent, refuses)
{
	play(good);
	cr_assert_eq(agent_sync(&agent, LONG_MS, &err), 0);
	cr_assert_eq(agent_call(&agent, "guest-x", NULL, LONG_MS, NULL, &err), -EREMOTEIO);
	expect_text("the guest agent refused guest-x: The command x?[2J has not been found");
	/* And goes on. */
	cr_assert_eq(agent_call(&agent, "guest-ping", NULL, LONG_MS, NULL, &err), 0);
}

static void silent_on_success(int fd)
{
	char line[1024];

	while (ask(fd, line)) {
		if (strstr(line, "guest-sync"))
			repeat(fd, line, 0);
		else if (strstr(line, "badly"))
			say(fd, "{\"error\": {\"desc\": \"no such mode\"}}\n");
	}
}

Test(agent, is_told_what_it_only_answers_when_it_fails)
{
	play(silent_on_success);
	cr_assert_eq(agent_sync(&agent, LONG_MS, &err), 0);
	cr_assert_eq(agent_tell(&agent, "guest-shutdown", json_pack("{s:s}", "mode", "badly"),
				LONG_MS, &err),
		     -EREMOTEIO);
	expect_text("no such mode");
	cr_assert_eq(agent_sync(&agent, LONG_MS, &err), 0);
	cr_assert_eq(agent_tell(&agent, "guest-shutdown", NULL, LONG_MS, &err), 0, "%s", err.text);
}

/* What another client left: half a reply, whole ones, an old number, a complaint. */
static void interrupted(int fd)
{
	char line[1024];

	say(fd, "[1, 2, {\"half\": \"of a rep");
	say(fd, "{\"return\": {}}\n\xff{\"return\": 1}\nnot even JSON\n\xff\xff\n");
	while (ask(fd, line)) {
		if (!strstr(line, "guest-sync")) {
			say(fd, "{\"return\": \"mine\"}\n");
			continue;
		}
		say(fd, "{\"error\": {\"class\": \"GenericError\", \"desc\": \"stray byte\"}}\n");
		repeat(fd, line, 1);
		repeat(fd, line, 0);
	}
}

Test(agent, is_brought_in_step)
{
	json_t *result = NULL;

	play(interrupted);
	cr_assert_eq(agent_sync(&agent, LONG_MS, &err), 0, "%s", err.text);
	cr_assert_eq(agent_call(&agent, "guest-x", NULL, LONG_MS, &result, &err), 0);
	cr_assert_str_eq(json_string_value(result), "mine");
	json_decref(result);
}

/* Says no to the number, then what it has to. */
static void refuse_sync(int fd)
{
	char line[1024];

	ask(fd, line);
	say(fd, "\xff{\"error\": {\"class\": \"GenericError\", \"desc\": \"no\"}}\n");
	repeat(fd, line, 0);
}

Test(agent, may_refuse_to_be_brought_in_step)
{
	play(refuse_sync);
	cr_assert_eq(agent_sync(&agent, LONG_MS, &err), 0, "%s", err.text);
}

static void byte_by_byte(int fd)
{
	static const char answer[] = "{\"return\": [1, 2, 3]}\n";
	char line[1024];

	while (ask(fd, line)) {
		if (strstr(line, "guest-sync"))
			repeat(fd, line, 0);
		else
			for (const char *c = answer; *c; c++)
				say(fd, (const char[]){*c, '\0'});
	}
}

Test(agent, may_be_slow)
{
	json_t *result = NULL;

	play(byte_by_byte);
	cr_assert_eq(agent_sync(&agent, LONG_MS, &err), 0);
	cr_assert_eq(agent_call(&agent, "guest-x", NULL, LONG_MS, &result, &err), 0);
	cr_assert_eq(json_array_size(result), 3);
	json_decref(result);
}

static void long_answer(int fd)
{
	static char text[3 << 20];
	char line[1024];

	memset(text, 'A', sizeof(text) - 1);
	while (ask(fd, line)) {
		if (strstr(line, "guest-sync")) {
			repeat(fd, line, 0);
			continue;
		}
		say(fd, "{\"return\": \"");
		say(fd, text);
		say(fd, "\"}\n");
	}
}

Test(agent, may_have_much_to_say)
{
	json_t *result = NULL;

	play(long_answer);
	cr_assert_eq(agent_sync(&agent, LONG_MS, &err), 0);
	cr_assert_eq(agent_call(&agent, "guest-x", NULL, LONG_MS, &result, &err), 0, "%s",
		     err.text);
	cr_assert_eq(json_string_length(result), (3u << 20) - 1);
	json_decref(result);
}

/* ---- agents that do not ---- */

static void mute(int fd)
{
	char line[1024];

	while (ask(fd, line))
		;
}

Test(agent, says_nothing)
{
	play(mute);
	cr_assert_eq(agent_sync(&agent, SHORT_MS, &err), -ETIMEDOUT);
	expect_text("the guest agent of \"web\" does not answer; is qemu-guest-agent running");
}

/* Not even what it is asked is taken: the request fills the socket. */
static void deaf(int fd _unused_)
{
	pause();
}

Test(agent, does_not_read)
{
	static char text[4 << 20];

	memset(text, 'A', sizeof(text) - 1);
	play(deaf);
	cr_assert_eq(
		agent_call(&agent, "guest-x", json_pack("{s:s}", "a", text), SHORT_MS, NULL, &err),
		-ETIMEDOUT);
}

static void gone(int fd)
{
	char line[1024];

	ask(fd, line);
	repeat(fd, line, 0);
	ask(fd, line);
}

Test(agent, goes_away)
{
	play(gone);
	cr_assert_eq(agent_sync(&agent, LONG_MS, &err), 0);
	cr_assert_eq(agent_call(&agent, "guest-x", NULL, LONG_MS, NULL, &err), -EPIPE);
	expect_text("the channel to the guest agent of \"web\" is lost: the VM closed it");
}

static void liar(int fd)
{
	char line[1024];

	while (ask(fd, line))
		repeat(fd, line, 5);
}

Test(agent, repeats_another_number)
{
	play(liar);
	cr_assert_eq(agent_sync(&agent, SHORT_MS, &err), -ETIMEDOUT);
}

static void flood(int fd)
{
	static char junk[65536];

	memset(junk, 'x', sizeof(junk) - 1);
	for (;;)
		say(fd, junk);
}

Test(agent, floods_before_it_is_in_step)
{
	play(flood);
	cr_assert_eq(agent_sync(&agent, SHORT_MS, &err), -ETIMEDOUT);
	cr_assert_leq(agent.size, 2 * AGENT_REPLY_MAX);
}

static void flood_after_sync(int fd)
{
	char line[1024];

	ask(fd, line);
	repeat(fd, line, 0);
	flood(fd);
}

Test(agent, floods_with_one_line)
{
	play(flood_after_sync);
	cr_assert_eq(agent_sync(&agent, LONG_MS, &err), 0);
	cr_assert_eq(agent_call(&agent, "guest-x", NULL, LONG_MS, NULL, &err), -EMSGSIZE);
	expect_text("answers guest-x with more than 4 MiB");
	cr_assert_leq(agent.size, 2 * AGENT_REPLY_MAX);
}

static void delimiters(int fd)
{
	static char junk[4096];

	memset(junk, 0xff, sizeof(junk) - 1);
	for (int i = 0; i < 4095; i += 2)
		junk[i] = '\n';
	for (;;)
		say(fd, junk);
}

Test(agent, floods_with_delimiters)
{
	play(delimiters);
	cr_assert_eq(agent_sync(&agent, SHORT_MS, &err), -ETIMEDOUT);
}

Test(agent, replies_that_make_no_sense)
{
	static const char *const lines[] = {
		"",
		"null",
		"7",
		"[]",
		"{}",
		"{\"return\"",
		"{\"return\": }",
		"{\"return\": 1, \"return\": 2}",
		"{\"result\": 1}",
		"\xff{\"return\": 1}",
		"{\"return\": \"\xc3\"}",
	};
	json_t *result = NULL;

	for (size_t i = 0; i < ARRAY_SIZE(lines); i++) {
		err = ERROR_NULL;
		cr_assert_eq(agent_parse(lines[i], strlen(lines[i]), "guest-x", &result, &err),
			     -EBADMSG, "%s", lines[i]);
		expect_text("the guest agent's answer to guest-x makes no sense");
	}
	cr_assert_null(result);
	cr_assert_eq(agent_parse("{\"error\": 7}", 12, "guest-x", &result, &err), -EREMOTEIO);
	expect_text("it gave no reason");
}

Test(agent, a_reply_has_a_depth)
{
	char text[512] = "{\"return\": ";
	json_t *result = NULL;
	size_t n = strlen(text);

	memset(text + n, '[', 31);
	memset(text + n + 31, ']', 31);
	strcpy(text + n + 62, "}");
	cr_assert_eq(agent_parse(text, strlen(text), "x", &result, &err), 0);
	json_decref(result);
	memset(text + n, '[', 32);
	memset(text + n + 32, ']', 32);
	strcpy(text + n + 64, "}");
	cr_assert_eq(agent_parse(text, strlen(text), "x", &result, &err), -EBADMSG);
	/* Brackets in a text are none. */
	strcpy(text, "{\"return\": \"\\\"[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[\"}");
	cr_assert_eq(agent_parse(text, strlen(text), "x", &result, &err), 0);
	json_decref(result);
}

/* ---- the parts of answers ---- */

static void expect_base64(const char *text, const char *data, size_t size)
{
	uint8_t *out = NULL;
	size_t n = 0;

	cr_assert_eq(agent_base64(text, &out, &n), 0, "%s", text);
	cr_assert_eq(n, size, "%s: %zu", text, n);
	cr_assert_eq(memcmp(out, data, size), 0);
	free(out);
}

Test(agent, base64)
{
	static const char *const bad[] = {"A",    "AA",   "AAA",      "AAAAA",    "AA=A",  "=AAA",
					  "A===", "====", "AAA AAA=", "AA==AAAA", "AA\n=", "AA-_"};
	uint8_t *out = NULL;
	size_t n;

	expect_base64("", "", 0);
	expect_base64("Zg==", "f", 1);
	expect_base64("Zm8=", "fo", 2);
	expect_base64("Zm9vYmFy", "foobar", 6);
	expect_base64("AP+/", "\0\xff\xbf", 3);
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
		cr_assert_eq(agent_base64(bad[i], &out, &n), -EBADMSG, "%s", bad[i]);
	cr_assert_null(out);
}

static int read_status(const char *text, struct guest_status *status)
{
	json_t *json = json_loads(text, 0, NULL);
	int r;

	cr_assert(json, "%s", text);
	r = guest_status_read(json, status, &err);
	json_decref(json);
	return r;
}

Test(agent, accounts_of_a_command)
{
	struct guest_status status;

	cr_assert_eq(read_status("{\"exited\": false}", &status), 0);
	cr_assert_not(status.exited);
	cr_assert_eq(
		read_status("{\"exited\": true, \"exitcode\": 7, \"out-data\": \"Zm9v\"}", &status),
		0);
	cr_assert(status.exited);
	cr_assert_eq(status.status, 7);
	cr_assert_eq(status.out_size, 3);
	cr_assert_eq(memcmp(status.out, "foo", 3), 0);
	guest_status_deinit(&status);
	cr_assert_eq(
		read_status("{\"exited\": true, \"signal\": 9, \"err-truncated\": true}", &status),
		0);
	cr_assert_eq(status.status, 137);
	cr_assert(status.truncated);
	guest_status_deinit(&status);
}

Test(agent, accounts_that_make_no_sense)
{
	static const char *const bad[] = {
		"[]",
		"{}",
		"{\"exited\": 1}",
		"{\"exited\": true}",
		"{\"exited\": true, \"exitcode\": -1}",
		"{\"exited\": true, \"exitcode\": 256}",
		"{\"exited\": true, \"exitcode\": \"0\"}",
		"{\"exited\": true, \"signal\": 128}",
		"{\"exited\": true, \"exitcode\": 0, \"out-data\": 7}",
		"{\"exited\": true, \"exitcode\": 0, \"out-data\": \"x\"}",
		"{\"exited\": true, \"exitcode\": 0, \"out-data\": \"Zm9v\", \"err-data\": 1}",
		"{\"exited\": true, \"exitcode\": 0, \"err-data\": \"!!!!\"}",
	};
	struct guest_status status;

	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		err = ERROR_NULL;
		cr_assert_eq(read_status(bad[i], &status), -EBADMSG, "%s", bad[i]);
		expect_text("makes no sense");
		cr_assert_null(status.out);
	}
}

static const char *printed(void (*print)(FILE *file, const json_t *json), const char *text)
{
	static char out[16384];
	json_t *json = json_loads(text, 0, NULL);
	FILE *file = fmemopen(out, sizeof(out), "w");

	cr_assert(json, "%s", text);
	print(file, json);
	fclose(file);
	json_decref(json);
	return out;
}

Test(agent, what_it_tells_is_readable)
{
	const char *text = printed(
		guest_print_info,
		"{\"agent\": {\"version\": \"7.2\"}, \"host\": {\"host-name\": \"web1\"}, \"os\": "
		"{\"pretty-name\": \"Debian\", \"kernel-release\": \"6.1\"}, \"network\": "
		"[{\"name\": \"eth0\", \"hardware-address\": \"52:54:00:00:00:01\", "
		"\"ip-addresses\": [{\"ip-address\": \"10.0.0.5\", \"prefix\": 24}]}], "
		"\"users\": [{\"user\": \"anna\"}], \"filesystems\": [{\"mountpoint\": \"/\", "
		"\"type\": \"ext4\", \"used-bytes\": 1048576, \"total-bytes\": 2097152}]}");

	cr_assert_str_eq(text, "agent    7.2\n"
			       "host     web1\n"
			       "system   Debian\n"
			       "kernel   6.1\n"
			       "network\n"
			       "  eth0         52:54:00:00:00:01 10.0.0.5/24\n"
			       "users\n"
			       "  anna\n"
			       "filesystems\n"
			       "  /                    ext4     1 MiB of 2 MiB\n");
}

Test(agent, what_it_tells_steers_no_terminal)
{
	cr_assert_str_eq(printed(guest_print_info,
				 "{\"host\": {\"host-name\": \"a\\u001b]0;x\\u0007b\\nc\"}, "
				 "\"os\": 5, \"network\": [7, {\"name\": 8}, {\"name\": "
				 "\"e\\r\", \"ip-addresses\": {\"a\": 1}}], \"users\": {}}"),
			 "host     a?]0;x?b?c\nnetwork\n  e?           -                \n");
}

Test(agent, long_lists_are_cut)
{
	json_t *list = json_array();
	char *text;
	int lines = 0;

	for (int i = 0; i < 5000; i++)
		json_array_append_new(list, json_pack("{s:s}", "name", "e"));
	text = json_dumps(list, 0);
	for (const char *c = printed(guest_print_network, text); *c; c++)
		lines += *c == '\n';
	cr_assert_eq(lines, 65);
	free(text);
	json_decref(list);
}
