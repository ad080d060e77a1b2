/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The board's ACPI tables: found and summed up as a guest would do it, taken apart and compiled
 * again by iasl, and their methods run by ACPICA's own interpreter (both from acpica-tools).
 */
#include <criterion/criterion.h>
#include <errno.h>
#include <stdio.h>

#include "devices/describe.h"
#include "devices/generation.h"
#include "vmm/x86/acpi.h"
#include "vmm/x86/test-image.h"

/* The board's devices, as far as they describe themselves. */
static const struct device_ops ops[] = {
	{.describe = serial_describe},
	{.describe = rtc_describe},
	{.describe = pvpanic_describe},
	{.describe = power_describe},
	{.describe = ged_describe},
	{.describe = pci_hotplug_describe},
	{0},
};
static const struct device_ops generation_ops = {.describe = generation_describe};
static struct device simple[] = {{.ops = &ops[0]}, {.ops = &ops[1]}, {.ops = &ops[2]},
				 {.ops = &ops[3]}, {.ops = &ops[4]}, {.ops = &ops[5]},
				 {.ops = &ops[6]}};
static struct generation generation = {.device = {.ops = &generation_ops},
				       .gpa = LAYOUT_GENERATION};
static struct device *const devices[] = {&simple[0], &simple[1], &simple[2], &simple[3],
					 &simple[4], &simple[5], &simple[6], &generation.device};

#define BOARD(cpus, memory)                                                        \
	{                                                                          \
		.n_cpus = (cpus), .memory_size = (memory)*MIB, .devices = devices, \
		.n_devices = ARRAY_SIZE(devices)                                   \
	}

static const struct dsdt_board board = BOARD(64, 8192);

static uint8_t tables[LAYOUT_ACPI_END - LAYOUT_ACPI];

static uint64_t number(size_t at, uint32_t size)
{
	uint64_t value = 0;

	cr_assert_leq(at + size, sizeof(tables));
	memcpy(&value, tables + at, size);
	return value;
}

static uint8_t sum(size_t at, size_t size)
{
	uint8_t value = 0;

	for (size_t i = 0; i < size; i++)
		value += number(at + i, 1);
	return value;
}

/* Offset of a table, by way of RSDP and XSDT; "DSDT" by way of the FADT. Sums are checked. */
static size_t find(const char *signature)
{
	size_t xsdt = number(24, 8) - LAYOUT_ACPI;

	cr_assert_eq(memcmp(tables, "RSD PTR ", 8), 0);
	cr_assert_eq(sum(0, 20), 0);
	cr_assert_eq(sum(0, 36), 0);
	cr_assert_eq(sum(xsdt, number(xsdt + 4, 4)), 0);
	if (strcmp(signature, "DSDT") == 0)
		return number(find("FACP") + 140, 8) - LAYOUT_ACPI;
	for (size_t at = xsdt + 36; at < xsdt + number(xsdt + 4, 4); at += 8) {
		size_t table = number(at, 8) - LAYOUT_ACPI;

		cr_assert_eq(sum(table, number(table + 4, 4)), 0);
		if (memcmp(tables + table, signature, 4) == 0)
			return table;
	}
	cr_assert_fail("no table %s", signature);
	return 0;
}

static void encode(const struct dsdt_board *of)
{
	size_t used;

	memset(tables, 0xee, sizeof(tables));
	cr_assert_eq(acpi_encode(of, LAYOUT_ACPI, tables, sizeof(tables), &used), 0);
}

/* A shell command in a directory of its own that holds the tables; what it printed. */
static const char *shell(const char *command)
{
	static const char *const names[] = {"DSDT", "FACP", "APIC", "MCFG"};
	static char output[65536], line[1024];
	char directory[] = "/tmp/test-acpi-XXXXXX";
	FILE *pipe;
	size_t size;

	cr_assert(mkdtemp(directory));
	for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
		char path[64];
		size_t at = find(names[i]);
		FILE *file;

		snprintf(path, sizeof(path), "%s/%s.dat", directory, names[i]);
		file = fopen(path, "w");
		cr_assert(file);
		cr_assert_eq(fwrite(tables + at, 1, number(at + 4, 4), file), number(at + 4, 4));
		fclose(file);
	}
	snprintf(line, sizeof(line), "cd %s && { %s; } 2>&1; rm -rf %s", directory, command,
		 directory);
	pipe = popen(line, "r");
	cr_assert(pipe);
	size = fread(output, 1, sizeof(output) - 1, pipe);
	output[size] = '\0';
	pclose(pipe);
	return output;
}

static void need(const char *tool)
{
	char command[64];

	snprintf(command, sizeof(command), "command -v %s >/dev/null", tool);
	if (system(command) != 0)
		cr_skip("%s is not installed (package acpica-tools)\n", tool);
}

static void compiles(const char *table)
{
	char command[256];
	const char *output;

	need("iasl");
	snprintf(command, sizeof(command),
		 "iasl -d %s.dat >/dev/null && mv %s.dsl again.dsl && iasl -p again again.dsl",
		 table, table);
	output = shell(command);
	cr_assert(strstr(output, "Compil"), "%s", output);
	cr_assert(strstr(output, "0 Errors, 0 Warnings") ||
			  (!strstr(output, "rror") && strstr(output, "Output:")),
		  "%s", output);
}

Test(acpi, dsdt_compiles_again)
{
	static const struct dsdt_board boards[] = {BOARD(1, 128), BOARD(64, 4096),
						   BOARD(300, 65536)};

	for (size_t i = 0; i < ARRAY_SIZE(boards); i++) {
		encode(&boards[i]);
		compiles("DSDT");
	}
}

/* iasl knows the fixed tables field by field: what it compiles from its own reading is the same. */
Test(acpi, fixed_tables_are_read_as_meant)
{
	static const char *const names[] = {"FACP", "APIC", "MCFG"};

	encode(&board);
	for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
		char command[256];

		compiles(names[i]);
		/* But for checksum and compiler name. */
		snprintf(command, sizeof(command),
			 "iasl -d %s.dat >/dev/null; iasl -p again %s.dsl >/dev/null; "
			 "tail -c +37 %s.dat >a; tail -c +37 again.aml >b; cmp a b && echo same",
			 names[i], names[i], names[i]);
		cr_assert(strstr(shell(command), "same"), "%s", names[i]);
	}
}

Test(acpi, hardware_is_reduced)
{
	size_t fadt;

	encode(&board);
	fadt = find("FACP");
	cr_assert_eq(number(fadt + 8, 1), 6);
	cr_assert_eq(number(fadt + 4, 4), 276);
	cr_assert_eq(number(fadt + 112, 4) & (1u << 20 | 1u << 10), 1u << 20 | 1u << 10);
	cr_assert_eq(number(fadt + 109, 2), 0x04);
	cr_assert_eq(number(fadt + 120, 8), 0x600); /* reset */
	cr_assert_eq(number(fadt + 128, 1), 1);
	cr_assert_eq(number(fadt + 248, 8), 0x600); /* sleep control */
	cr_assert_eq(number(fadt + 260, 8), 0x600); /* sleep status */
	cr_assert_eq(number(fadt + 76, 4), 0);      /* PM timer */
}

Test(acpi, every_cpu_has_its_apic)
{
	static const struct dsdt_board many = BOARD(300, 8192);
	size_t madt, at, end;
	uint32_t cpus = 0;

	encode(&many);
	madt = find("APIC");
	end = madt + number(madt + 4, 4);
	cr_assert_eq(number(madt + 36, 4), 0xfee00000);
	cr_assert_eq(number(madt + 40, 4), 0);
	for (at = madt + 44; at < end; at += number(at + 1, 1)) {
		if (number(at, 1) == 0) {
			cr_assert_eq(number(at + 3, 1), cpus);
			cpus++;
		} else if (number(at, 1) == 9) {
			cr_assert_eq(number(at + 4, 4), cpus);
			cr_assert_eq(number(at + 12, 4), cpus);
			cpus++;
		} else {
			cr_assert_eq(number(at, 1), 1);
			cr_assert_eq(number(at + 4, 4), 0xfec00000);
		}
	}
	cr_assert_eq(at, end);
	cr_assert_eq(cpus, 300);
}

/* What ACPICA makes of an object: `command` as acpiexec takes it, every port reads as `fill`. */
static const char *evaluate_with(const char *command, uint32_t fill)
{
	char line[256];

	need("acpiexec");
	snprintf(line, sizeof(line), "acpiexec -fv %u -b '%s' DSDT.dat FACP.dat APIC.dat MCFG.dat",
		 fill, command);
	return shell(line);
}

static const char *evaluate(const char *command)
{
	return evaluate_with(command, 0);
}

/* ACPICA had nothing to complain about. What acpiexec says at its end about its own leaks (strings
 * in packages, of any table) is not about us. */
static void clean(const char *output)
{
	for (const char *at = output; (at = strstr(at, "ACPI Error: ")); at++)
		cr_assert(strstr(at, "Outstanding cache") && strcspn(at, "\n") < 80, "%s", output);
	cr_assert_not(strstr(output, "ACPI BIOS"), "%s", output);
	cr_assert_not(strstr(output, "ACPI Warning"), "%s", output);
}

Test(acpi, acpica_reads_sleep_type)
{
	const char *output;

	encode(&board);
	output = evaluate("evaluate \\_S5");
	cr_assert(strstr(output, "[Package] Contains 4 Elements"), "%s", output);
	cr_assert(strstr(output, "[Integer] = 0000000000000005"), "%s", output);
	clean(output);
}

Test(acpi, acpica_reads_pci_windows)
{
	const char *output;

	encode(&board);
	output = evaluate("resources \\_SB.PCI0");
	cr_assert(strstr(output, "C0000000"), "%s", output);
	cr_assert(strstr(output, "E7FFFFFF"), "%s", output);
	cr_assert(strstr(output, "0000000400000000"), "%s", output);
	cr_assert(strstr(output, "00000007FFFFFFFF"), "%s", output);
	clean(output);
}

/* The 4 KiB page is alone in its kind of memory. */
Test(acpi, generation_id_is_where_the_map_says)
{
	struct layout_entry map[LAYOUT_MAP_MAX];
	uint32_t n = layout_map(board.memory_size, map);
	const char *output;
	char words[64];

	encode(&board);
	output = evaluate("evaluate \\_SB.VGEN.ADDR");
	snprintf(words, sizeof(words), "[Integer] = %016llX",
		 (unsigned long long)LAYOUT_GENERATION);
	cr_assert(strstr(output, words), "%s", output);
	for (uint32_t i = 0; i < n; i++)
		cr_assert_eq(map[i].type == LAYOUT_NVS, map[i].start == LAYOUT_GENERATION);
}

static void notifies(uint32_t event, bool button, bool renewed)
{
	const char *output = evaluate_with("evaluate \\_SB.GED0._EVT 9", event);

	cr_assert(strstr(output, "Evaluating \\_SB.GED0._EVT"), "%s", output);
	cr_assert_eq(!!strstr(output, "[PWRB]"), button, "%u: %s", event, output);
	cr_assert_eq(!!strstr(output, "[VGEN]"), renewed, "%u: %s", event, output);
	cr_assert_not(strstr(output, "AE_"), "%s", output);
	clean(output);
}

Test(acpi, events_notify_their_devices)
{
	encode(&board);
	notifies(0, false, false);
	notifies(GED_POWER_BUTTON, true, false);
	notifies(GED_GENERATION, false, true);
	notifies(0xff, true, true);
}

/* Every slot has its number, its place and its way out, as iasl reads it. */
Test(acpi, each_slot_can_be_plugged)
{
	static const struct dsdt_board small = BOARD(1, 128);
	const char *text, *at;

	need("iasl");
	encode(&small);
	text = shell("iasl -d DSDT.dat >/dev/null; tr -s ' \n' ' ' <DSDT.dsl");
	at = strstr(text, "Scope (\\_SB.PCI0)");
	cr_assert(at, "%s", text);
	for (uint32_t slot = 1; slot < 32; slot++) {
		char words[256], number[8], address[16], bit[16];

		snprintf(number, sizeof(number), slot == 1 ? "One" : "0x%02X", slot);
		snprintf(address, sizeof(address), "0x%08X", slot << 16);
		snprintf(bit, sizeof(bit),
			 slot < 8    ? "0x%02X"
			 : slot < 16 ? "0x%04X"
				     : "0x%08X",
			 1u << slot);
		snprintf(words, sizeof(words),
			 "Device (S%02X) { Name (_SUN, %s) // _SUN: Slot User Number "
			 "Name (_ADR, %s) // _ADR: Address "
			 "Method (_EJ0, 1, Serialized) // _EJx: Eject Device, x=0-9 "
			 "{ \\_SB.PHPR.EJCT = %s } }",
			 slot, number, address, bit);
		at = strstr(at, words);
		cr_assert(at, "no %s in %s", words, text);
	}
}

/* How many notifications of a slot there are in what acpiexec says, by their value. */
static uint32_t count(const char *output, const char *words)
{
	uint32_t n = 0;

	for (const char *at = output; (at = strstr(at, words)); at++)
		n++;
	return n;
}

/* Each port reads as the same byte, so both registers have the same bits. */
Test(acpi, hot_plug_notifies_its_slots)
{
	const char *output;

	encode(&board);
	output = evaluate_with("evaluate \\_SB.PHPR.SCAN", 0);
	cr_assert_eq(count(output, "[S"), 0, "%s", output);
	clean(output);
	/* Bits 1, 9, 17 and 25. */
	output = evaluate_with("evaluate \\_SB.PHPR.SCAN", 2);
	cr_assert_eq(count(output, "[S01_]"), 2, "%s", output);
	cr_assert_eq(count(output, "[S09_]"), 2, "%s", output);
	cr_assert_eq(count(output, "[S11_]"), 2, "%s", output);
	cr_assert_eq(count(output, "[S19_]"), 2, "%s", output);
	cr_assert_eq(count(output, "[S"), 8, "%s", output);
	clean(output);
	/* By way of the event device. */
	output = evaluate_with("evaluate \\_SB.GED0._EVT 9", GED_PCI_HOTPLUG);
	cr_assert_eq(count(output, "[S"), 8, "%s", output);
	cr_assert(strstr(output, "[S1B_]"), "%s", output);
	cr_assert_not(strstr(output, "AE_"), "%s", output);
	clean(output);
}

Test(acpi, tables_depend_on_nothing_else)
{
	static uint8_t first[sizeof(tables)];

	encode(&board);
	memcpy(first, tables, sizeof(tables));
	encode(&board);
	cr_assert_arr_eq(first, tables, sizeof(tables));
}

Test(acpi, tables_that_do_not_fit_are_refused)
{
	struct dsdt_board many = BOARD(4095, 8192);
	size_t used;

	cr_assert_eq(acpi_encode(&many, LAYOUT_ACPI, tables, sizeof(tables), &used), -ENOSPC);
	for (size_t size = 36; size < 6000; size += 97)
		cr_assert_eq(
			acpi_encode(&board, LAYOUT_ACPI, tables, MIN(size, (size_t)3000), &used),
			-ENOSPC);
}

Test(acpi, tables_go_to_guest_memory)
{
	struct guest_memory memory;
	char signature[8];
	gpa_t rsdp;

	test_memory(&memory, 2 * MIB);
	cr_assert_eq(acpi_write(&memory, 4, devices, ARRAY_SIZE(devices), &rsdp, NULL), 0);
	cr_assert_eq(memory_read(&memory, rsdp, signature, 8), 0);
	cr_assert_eq(memcmp(signature, "RSD PTR ", 8), 0);
}
