/* SPDX-License-Identifier: Apache-2.0 */
/* What the ACPI tables tell a guest test, read once at start. */
#pragma once

#include "guest-tests/runtime/apic.h"

/* A generic address structure, cut down to what is used; space is 0 for memory, 1 for ports. */
struct acpi_register {
	uint8_t space;
	gpa_t at;
};

struct acpi_info {
	unsigned int n_cpus;
	uint32_t cpu_apic_ids[MAX_CPUS];
	gpa_t ioapic;
	gpa_t ecam;
	uint8_t ecam_first_bus, ecam_last_bus;
	bool has_ecam;
	bool hardware_reduced;
	bool has_reset;
	uint8_t reset_value;
	struct acpi_register reset, sleep_control;
	uint16_t pm1a_control; /* 0 on a hardware-reduced board */
	uint16_t pm_timer;     /* 0 when there is none */
	const uint8_t *dsdt;
	uint32_t dsdt_len;
};

void acpi_init(gpa_t rsdp);
const struct acpi_info *acpi_info(void);
void acpi_register_write(const struct acpi_register *reg, uint8_t value);

/* Whether the bytes of text are anywhere in the DSDT: enough to see that a device is described. */
bool acpi_dsdt_mentions(const char *text);

void __attribute__((noreturn)) reset_by_acpi(void);
void __attribute__((noreturn)) reset_by_i8042(void);
