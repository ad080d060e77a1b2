/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A builder for ACPI Machine Language: what devices use to describe themselves to the guest. Calls
 * follow the order of the encoding, which is that of ASL read aloud: open a block, put what is in
 * it, `aml_end`. Bytes go to a fixed buffer; running out of it is remembered and reported once, by
 * aml_status. Names are ours, not the guest's: a bad one is a bug and asserts.
 *
 *   aml_device(aml, "COM1");
 *           aml_name_eisa_id(aml, "_HID", "PNP0501");
 *           aml_name(aml, "_CRS");
 *           aml_resources(aml);
 *                   aml_io(aml, 0x3f8, 8);
 *                   aml_interrupt_edge(aml, 4);
 *           aml_end(aml);
 *   aml_end(aml);
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "base/cursor.h"

#define AML_DEPTH_MAX 8

struct aml {
	struct cursor out; /* borrows the buffer */
	uint32_t depth;
	struct {
		size_t start; /* of the block's contents */
		bool resources;
	} open[AML_DEPTH_MAX];
};

struct aml aml_writer(void *data, size_t size);
/* 0 or -ENOSPC. Every block has been ended. */
int aml_status(const struct aml *aml) __must_check;

/* Blocks, each up to its aml_end. Paths: "PCI0", "\\_SB.PCI0", "^PCI0". */
void aml_scope(struct aml *aml, const char *path);
void aml_device(struct aml *aml, const char *name);
void aml_method(struct aml *aml, const char *name, uint32_t n_args, bool serialized);
void aml_package(struct aml *aml, uint8_t n_elements);
void aml_resources(struct aml *aml); /* a buffer with a resource template */
void aml_if(struct aml *aml);        /* first term is the condition */
void aml_else(struct aml *aml);
void aml_field(struct aml *aml, const char *region);   /* byte access, no lock, bits preserved */
void aml_field32(struct aml *aml, const char *region); /* 32 bits, no lock, the rest as zeroes */
void aml_end(struct aml *aml);

/* Name (name, …): the next term is the value. */
void aml_name(struct aml *aml, const char *name);
void aml_name_integer(struct aml *aml, const char *name, uint64_t value);
void aml_name_string(struct aml *aml, const char *name, const char *text);
void aml_name_eisa_id(struct aml *aml, const char *name, const char *id);

/* Terms. */
void aml_integer(struct aml *aml, uint64_t value);
void aml_string(struct aml *aml, const char *text);
void aml_eisa_id(struct aml *aml, const char *id); /* "PNP0A08" */
void aml_path(struct aml *aml, const char *path);
void aml_local(struct aml *aml, uint32_t number); /* Local0 … Local7 */
void aml_arg(struct aml *aml, uint32_t number);   /* Arg0 … Arg6 */

/* Operators; the operands follow as terms. AND, OR and ADD end with a target, which may be
 * aml_nowhere. */
enum aml_operator {
	AML_STORE = 0x70, /* value, target */
	AML_ADD = 0x72,
	AML_AND = 0x7b,
	AML_OR = 0x7d,
	AML_NOTIFY = 0x86, /* object, value */
	AML_NOT = 0x92,    /* logical */
	AML_EQUAL = 0x93,
	AML_RETURN = 0xa4,
};
void aml_operator(struct aml *aml, enum aml_operator operator);
void aml_nowhere(struct aml *aml);
void aml_notify(struct aml *aml, const char *path, uint64_t value);

/* A region of I/O ports, and a field's named part of so many bits. */
void aml_port_region(struct aml *aml, const char *name, uint16_t port, uint16_t size);
void aml_field_bits(struct aml *aml, const char *name, uint32_t n_bits);

/* Resources, inside aml_resources. Fixed ones are what a device uses up. */
void aml_io(struct aml *aml, uint16_t port, uint8_t size);
void aml_memory32(struct aml *aml, uint32_t start, uint32_t size);
void aml_interrupt_edge(struct aml *aml, uint32_t gsi); /* active high, not shared */
/* Windows are what a bridge hands on, `last` included. */
void aml_bus_window(struct aml *aml, uint16_t first, uint16_t last);
void aml_io_window(struct aml *aml, uint16_t first, uint16_t last);
void aml_memory32_window(struct aml *aml, uint32_t first, uint32_t last);
void aml_memory64_window(struct aml *aml, uint64_t first, uint64_t last);
