/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Runs at build time: reads the lists of system calls beside it (README.md has their format), has
 * libseccomp make a BPF program of each, and writes one C header with the programs and the rules
 * they were made from. A name or constant it does not know, a line without its reason or a doubled
 * line stops the build. What is not listed kills the process.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/fs.h>
#include <linux/if_tun.h>
#include <linux/io_uring.h>
#include <linux/kvm.h>
#include <linux/vhost.h>
#include <seccomp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

#include "base/macros.h"

#define RULES_MAX 256

struct rule {
	char name[32];
	int nr;
	bool conditional;
	bool none_of; /* `~`: no bit of `value` is set; else equal to it */
	unsigned int arg;
	uint64_t value;
	bool shared; /* from the file that is added to every list */
};

struct list {
	char kind[16];
	size_t n_rules;
	struct rule rules[RULES_MAX];
};

#define CONSTANT(name)      \
	{                   \
#name, name \
	}
static const struct {
	const char *name;
	uint64_t value;
} constants[] = {
	CONSTANT(AT_EMPTY_PATH),
	CONSTANT(BLKSSZGET),
	CONSTANT(F_GETFL),
	CONSTANT(F_OFD_GETLK),
	CONSTANT(F_OFD_SETLK),
	CONSTANT(F_SETFL),
	CONSTANT(IORING_REGISTER_ENABLE_RINGS),
	CONSTANT(IORING_REGISTER_FILES_UPDATE),
	CONSTANT(IORING_REGISTER_FILES_UPDATE2),
	CONSTANT(IORING_REGISTER_IOWQ_MAX_WORKERS),
	CONSTANT(IORING_REGISTER_RING_FDS),
	CONSTANT(IORING_UNREGISTER_RING_FDS),
	CONSTANT(KVM_CLEAR_DIRTY_LOG),
	CONSTANT(KVM_GET_CLOCK),
	CONSTANT(KVM_GET_DEBUGREGS),
	CONSTANT(KVM_GET_DIRTY_LOG),
	CONSTANT(KVM_GET_FPU),
	CONSTANT(KVM_GET_IRQCHIP),
	CONSTANT(KVM_GET_LAPIC),
	CONSTANT(KVM_GET_MP_STATE),
	CONSTANT(KVM_GET_MSRS),
	CONSTANT(KVM_GET_REGS),
	CONSTANT(KVM_GET_SREGS),
	CONSTANT(KVM_GET_SREGS2),
	CONSTANT(KVM_GET_TSC_KHZ),
	CONSTANT(KVM_GET_VCPU_EVENTS),
	CONSTANT(KVM_GET_XCRS),
	CONSTANT(KVM_GET_XSAVE),
	CONSTANT(KVM_GET_XSAVE2),
	CONSTANT(KVM_IOEVENTFD),
	CONSTANT(KVM_IRQFD),
	CONSTANT(KVM_IRQ_LINE),
	CONSTANT(KVM_KVMCLOCK_CTRL),
	CONSTANT(KVM_RUN),
	CONSTANT(KVM_SET_CLOCK),
	CONSTANT(KVM_SET_DEBUGREGS),
	CONSTANT(KVM_SET_FPU),
	CONSTANT(KVM_SET_GSI_ROUTING),
	CONSTANT(KVM_SET_IRQCHIP),
	CONSTANT(KVM_SET_LAPIC),
	CONSTANT(KVM_SET_MP_STATE),
	CONSTANT(KVM_SET_MSRS),
	CONSTANT(KVM_SET_REGS),
	CONSTANT(KVM_SET_SREGS),
	CONSTANT(KVM_SET_SREGS2),
	CONSTANT(KVM_SET_TSC_KHZ),
	CONSTANT(KVM_SET_USER_MEMORY_REGION),
	CONSTANT(KVM_SET_VCPU_EVENTS),
	CONSTANT(KVM_SET_XCRS),
	CONSTANT(KVM_SET_XSAVE),
	CONSTANT(KVM_SIGNAL_MSI),
	CONSTANT(MADV_DONTNEED),
	CONSTANT(MADV_FREE),
	CONSTANT(MADV_HUGEPAGE),
	CONSTANT(MADV_MERGEABLE),
	CONSTANT(MADV_NOHUGEPAGE),
	CONSTANT(MADV_REMOVE),
	CONSTANT(MADV_UNMERGEABLE),
	CONSTANT(PROT_EXEC),
	CONSTANT(TCGETS),
	CONSTANT(TUNSETOFFLOAD),
	CONSTANT(TUNSETQUEUE),
	CONSTANT(VHOST_GET_VRING_BASE),
	CONSTANT(VHOST_NET_SET_BACKEND),
	CONSTANT(VHOST_SET_FEATURES),
	CONSTANT(VHOST_SET_VRING_ADDR),
	CONSTANT(VHOST_SET_VRING_BASE),
	CONSTANT(VHOST_SET_VRING_CALL),
	CONSTANT(VHOST_SET_VRING_KICK),
	CONSTANT(VHOST_SET_VRING_NUM),
};

static _Noreturn void __printf(1, 2) die(const char *format, ...)
{
	va_list args;

	va_start(args, format);
	vfprintf(stderr, format, args);
	va_end(args);
	fputc('\n', stderr);
	exit(1);
}

static uint64_t parse_value(const char *text, const char *where)
{
	char *end;

	for (size_t i = 0; i < ARRAY_SIZE(constants); i++)
		if (strcmp(constants[i].name, text) == 0)
			return constants[i].value;
	errno = 0;
	uint64_t value = strtoull(text, &end, 0);
	if (errno || end == text || *end)
		die("%s: \"%s\" is neither a number nor a constant that generate.c knows", where,
		    text);
	return value;
}

/* `arg2~PROT_EXEC`, `arg1=KVM_RUN` */
static void parse_condition(struct rule *rule, const char *text, const char *where)
{
	if (strncmp(text, "arg", 3) != 0 || text[3] < '0' || text[3] > '5' ||
	    (text[4] != '=' && text[4] != '~'))
		die("%s: \"%s\" is not argN=VALUE or argN~BITS", where, text);
	rule->conditional = true;
	rule->arg = (unsigned int)(text[3] - '0');
	rule->none_of = text[4] == '~';
	rule->value = parse_value(text + 5, where);
}

static bool same_rule(const struct rule *a, const struct rule *b)
{
	return a->nr == b->nr && a->conditional == b->conditional && a->none_of == b->none_of &&
	       a->arg == b->arg && a->value == b->value && a->shared == b->shared;
}

static void list_add(struct list *list, const struct rule *rule, const char *where)
{
	for (size_t i = 0; i < list->n_rules; i++)
		if (same_rule(&list->rules[i], rule))
			die("%s: %s is there twice", where, rule->name);
	if (list->n_rules == RULES_MAX)
		die("%s: more than %d lines", where, RULES_MAX);
	list->rules[list->n_rules++] = *rule;
}

static void parse_line(struct list *list, char *line, const char *where, bool shared)
{
	struct rule rule = {.shared = shared};
	char *hash = strchr(line, '#');
	char *save;

	if (!hash || line[0] == '#')
		hash = line + strcspn(line, "#\n");
	const char *why = hash[0] ? hash + 1 + strspn(hash + 1, " \t\n") : "";
	bool reasoned = *why;
	*hash = 0;
	char *name = strtok_r(line, " \t\n", &save);
	if (!name)
		return;
	char *condition = strtok_r(NULL, " \t\n", &save);
	if (strtok_r(NULL, " \t\n", &save))
		die("%s: more than a name and one condition", where);
	if (!reasoned)
		die("%s: %s has no reason after a #", where, name);
	if (strlen(name) >= sizeof(rule.name))
		die("%s: no call has so long a name: %s", where, name);
	strcpy(rule.name, name);
	rule.nr = seccomp_syscall_resolve_name(name);
	if (rule.nr == __NR_SCMP_ERROR)
		die("%s: there is no system call %s", where, name);
	if (condition)
		parse_condition(&rule, condition, where);
	if (rule.nr >= 0) /* else a call that this architecture does without */
		list_add(list, &rule, where);
}

static void list_read(struct list *list, const char *path, bool shared)
{
	FILE *file = fopen(path, "re");
	char line[512], where[300];

	if (!file)
		die("cannot open %s: %s", path, strerror(errno));
	for (unsigned int n = 1; fgets(line, sizeof(line), file); n++) {
		snprintf(where, sizeof(where), "%s:%u", path, n);
		if (!strchr(line, '\n'))
			die("%s: line too long, or the last line does not end", where);
		parse_line(list, line, where, shared);
	}
	fclose(file);
}

/* A call that is allowed whatever its arguments needs no further rule (sanitizers widen so). */
static bool is_covered(const struct list *list, const struct rule *rule)
{
	for (const struct rule *other = list->rules; other < list->rules + list->n_rules; other++)
		if (other->nr == rule->nr && !other->conditional &&
		    (rule->conditional || other < rule))
			return true;
	return false;
}

static void list_compact(struct list *list)
{
	size_t n = 0;
	bool covered[RULES_MAX];

	for (size_t i = 0; i < list->n_rules; i++)
		covered[i] = is_covered(list, &list->rules[i]);
	for (size_t i = 0; i < list->n_rules; i++)
		if (!covered[i])
			list->rules[n++] = list->rules[i];
	list->n_rules = n;
}

static bool is_first_of_call(const struct list *list, size_t at)
{
	for (size_t i = 0; i < at; i++)
		if (list->rules[i].nr == list->rules[at].nr)
			return false;
	return true;
}

static unsigned int count_calls(const struct list *list)
{
	unsigned int n = 0;

	for (size_t i = 0; i < list->n_rules; i++)
		n += is_first_of_call(list, i);
	return n;
}

static void add_rule(scmp_filter_ctx filter, const struct rule *rule)
{
	struct scmp_arg_cmp condition = {
		.arg = rule->arg,
		.op = rule->none_of ? SCMP_CMP_MASKED_EQ : SCMP_CMP_EQ,
		.datum_a = rule->value,
		.datum_b = 0,
	};
	int r = seccomp_rule_add_exact_array(filter, SCMP_ACT_ALLOW, rule->nr, rule->conditional,
					     &condition);

	if (r < 0)
		die("cannot add the rule for %s: %s", rule->name, strerror(-r));
}

static scmp_filter_ctx list_compile(const struct list *list)
{
	scmp_filter_ctx filter = seccomp_init(SCMP_ACT_KILL_PROCESS);

	if (!filter || seccomp_attr_set(filter, SCMP_FLTATR_ACT_BADARCH, SCMP_ACT_KILL_PROCESS) < 0)
		die("cannot start a filter");
	for (size_t i = 0; i < list->n_rules; i++) {
		add_rule(filter, &list->rules[i]);
		/* What is listed first is looked at first. */
		if (is_first_of_call(list, i) &&
		    seccomp_syscall_priority(filter, list->rules[i].nr,
					     (uint8_t)(i < 255 ? 255 - i : 0)) < 0)
			die("cannot order %s", list->rules[i].name);
	}
	return filter;
}

static size_t list_export(const struct list *list, struct sock_filter *code, size_t max)
{
	scmp_filter_ctx filter = list_compile(list);
	FILE *file = tmpfile();

	if (!file || seccomp_export_bpf(filter, fileno(file)) < 0)
		die("cannot export the filter of %s", list->kind);
	seccomp_release(filter);
	rewind(file);
	size_t n = fread(code, sizeof(*code), max, file);
	if (n == 0 || fgetc(file) != EOF)
		die("the filter of %s does not fit", list->kind);
	fclose(file);
	return n;
}

static void list_print(const struct list *list, FILE *out)
{
	struct sock_filter code[BPF_MAXINSNS];
	size_t n = list_export(list, code, ARRAY_SIZE(code));

	fprintf(out, "static const struct sock_filter seccomp_%s_code[] = {\n", list->kind);
	for (size_t i = 0; i < n; i++)
		fprintf(out, "\t{0x%02x, %u, %u, 0x%08x},\n", code[i].code, code[i].jt, code[i].jf,
			code[i].k);
	fprintf(out, "};\nstatic const struct seccomp_rule seccomp_%s_rules[] = {\n", list->kind);
	for (size_t i = 0; i < list->n_rules; i++) {
		const struct rule *rule = &list->rules[i];

		fprintf(out, "\t{\"%s\", %d, %d, %d, %u, 0x%llxull, %d},\n", rule->name, rule->nr,
			rule->conditional, rule->none_of, rule->arg,
			(unsigned long long)rule->value, rule->shared);
	}
	fputs("};\n\n", out);
}

static const char header_top[] =
	"/* SPDX-License-Identifier: Apache-2.0 */\n"
	"/* Made by vmm/seccomp/generate.c from the lists beside it. */\n"
	"#pragma once\n\n#include <linux/filter.h>\n#include <stdbool.h>\n#include <stdint.h>\n\n"
	"struct seccomp_rule {\n\tconst char *name;\n\tint nr;\n\tbool conditional, none_of;\n"
	"\tunsigned int arg;\n\tuint64_t value;\n\tbool sanitizer;\n};\n\n"
	"struct seccomp_list {\n\tconst char *kind;\n\tunsigned int n_calls, n_own_calls;\n"
	"\tunsigned short n_code;\n\tconst struct sock_filter *code;\n\tunsigned int n_rules;\n"
	"\tconst struct seccomp_rule *rules;\n};\n\n";

static void print_lists(const struct list *lists, const unsigned int *n_own, size_t n_lists,
			bool sanitized, FILE *out)
{
	fputs(header_top, out);
	fprintf(out, "#define SECCOMP_SANITIZED %d\n\n", sanitized);
	for (size_t i = 0; i < n_lists; i++)
		list_print(&lists[i], out);
	fprintf(out, "static const struct seccomp_list seccomp_lists[%zu] = {\n", n_lists);
	for (size_t i = 0; i < n_lists; i++)
		fprintf(out,
			"\t{\"%1$s\", %2$u, %3$u,\n\t sizeof(seccomp_%1$s_code) / sizeof(struct "
			"sock_filter), seccomp_%1$s_code,\n\t sizeof(seccomp_%1$s_rules) / "
			"sizeof(struct seccomp_rule), seccomp_%1$s_rules},\n",
			lists[i].kind, count_calls(&lists[i]), n_own[i]);
	fputs("};\n", out);
}

/* "…/vcpu.list" is the list of kind "vcpu". */
static void list_name(struct list *list, const char *path)
{
	const char *slash = strrchr(path, '/');
	const char *name = slash ? slash + 1 : path;
	size_t n = strcspn(name, ".");

	if (n == 0 || n >= sizeof(list->kind))
		die("%s: what kind is that?", path);
	memcpy(list->kind, name, n);
}

/* generate OUTPUT (SANITIZER-LIST | -) LIST... */
int main(int argc, char **argv)
{
	static struct list lists[8];
	unsigned int n_own[ARRAY_SIZE(lists)];
	size_t n_lists = (size_t)argc - 3;

	if (argc < 4 || n_lists > ARRAY_SIZE(lists))
		die("usage: generate OUTPUT SANITIZER-LIST|- LIST...");
	bool sanitized = strcmp(argv[2], "-") != 0;
	for (size_t i = 0; i < n_lists; i++) {
		list_name(&lists[i], argv[i + 3]);
		list_read(&lists[i], argv[i + 3], false);
		n_own[i] = count_calls(&lists[i]);
		if (sanitized)
			list_read(&lists[i], argv[2], true);
		list_compact(&lists[i]);
	}
	FILE *out = fopen(argv[1], "we");
	if (!out)
		die("cannot open %s: %s", argv[1], strerror(errno));
	print_lists(lists, n_own, n_lists, sanitized, out);
	if (fclose(out) != 0)
		die("cannot write %s: %s", argv[1], strerror(errno));
	return 0;
}
