/* SPDX-License-Identifier: Apache-2.0 */
/*
 * ACPI Machine Language, chapter 20 of the ACPI 6.4 specification; resource descriptors, chapter
 * 6.4. A block's length stands before its contents and has one to four bytes by its own value: the
 * contents are written first and moved up when the block ends.
 */
#include "devices/aml.h"

#include <assert.h>
#include <ctype.h>
#include <string.h>

#define OP_NAME           0x08
#define OP_BYTE           0x0a
#define OP_WORD           0x0b
#define OP_DWORD          0x0c
#define OP_STRING         0x0d
#define OP_QWORD          0x0e
#define OP_SCOPE          0x10
#define OP_BUFFER         0x11
#define OP_PACKAGE        0x12
#define OP_METHOD         0x14
#define OP_DUAL_NAME      0x2e
#define OP_MULTI_NAME     0x2f
#define OP_EXTENDED       0x5b
#define OP_LOCAL0         0x60
#define OP_ARG0           0x68
#define OP_IF             0xa0
#define OP_ELSE           0xa1
#define OP_EXT_REGION     0x80
#define OP_EXT_FIELD      0x81
#define OP_EXT_DEVICE     0x82

#define METHOD_SERIALIZED (1u << 3)
#define REGION_IO         1
#define FIELD_BYTE        1
#define FIELD_DWORD_ZEROS 0x43 /* what is not written of a word is written as zeroes */
#define NAME_SIZE         4
#define LENGTH_BYTES_MAX  4

#define RES_IO            0x47
#define RES_END           0x79
#define RES_MEMORY32      0x86
#define RES_DWORD         0x87
#define RES_WORD          0x88
#define RES_INTERRUPT     0x89
#define RES_QWORD         0x8a

#define WINDOW_MEMORY     0
#define WINDOW_IO         1
#define WINDOW_BUS        2
#define WINDOW_FIXED      0x0c /* producer, positive decoding, both ends fixed */
#define WINDOW_READ_WRITE 0x01
#define WINDOW_IO_ENTIRE  0x03

struct aml aml_writer(void *data, size_t size)
{
	return (struct aml){.out = cursor_writer(data, size)};
}

int aml_status(const struct aml *aml)
{
	assert(aml->depth == 0);
	return cursor_status(&aml->out);
}

/* Four letters; shorter names are filled up with underscores. */
static void put_segment(struct aml *aml, const char *name, size_t size)
{
	assert(size > 0 && size <= NAME_SIZE);
	for (size_t i = 0; i < NAME_SIZE; i++) {
		char c = i < size ? name[i] : '_';

		assert(isupper((unsigned char)c) || c == '_' ||
		       (i > 0 && isdigit((unsigned char)c)));
		cursor_put_u8(&aml->out, c);
	}
}

void aml_path(struct aml *aml, const char *path)
{
	uint32_t n = 1;

	while (*path == '\\' || *path == '^')
		cursor_put_u8(&aml->out, *path++);
	for (const char *c = path; *c; c++)
		n += *c == '.';
	assert(n <= UINT8_MAX);
	if (n == 2)
		cursor_put_u8(&aml->out, OP_DUAL_NAME);
	if (n > 2) {
		cursor_put_u8(&aml->out, OP_MULTI_NAME);
		cursor_put_u8(&aml->out, n);
	}
	for (; n > 0; n--) {
		size_t size = strcspn(path, ".");

		put_segment(aml, path, size);
		path += size + (n > 1);
	}
}

/* The package length itself counts: with one byte 6 bits hold it, with more 4 bits and a byte each.
 * `body` does not include it. */
static uint32_t length_bytes(size_t body)
{
	if (body + 1 < 1u << 6)
		return 1;
	if (body + 2 < 1u << 12)
		return 2;
	return body + 3 < 1u << 20 ? 3 : 4;
}

static uint32_t encode_length(size_t total, uint32_t n, uint8_t bytes[LENGTH_BYTES_MAX])
{
	assert(total < 1u << 28);
	if (n == 1) {
		bytes[0] = total;
		return n;
	}
	bytes[0] = (n - 1) << 6 | (total & 0xf);
	for (uint32_t i = 1; i < n; i++)
		bytes[i] = total >> (4 + 8 * (i - 1));
	return n;
}

static void block_open(struct aml *aml, bool resources)
{
	assert(aml->depth < AML_DEPTH_MAX);
	aml->open[aml->depth].start = aml->out.at;
	aml->open[aml->depth].resources = resources;
	aml->depth++;
}

/* Puts `n` bytes before what was written since `start`. */
static void insert(struct aml *aml, size_t start, const uint8_t *bytes, uint32_t n)
{
	size_t size = aml->out.at - start;

	cursor_put_bytes(&aml->out, bytes, n);
	if (aml->out.failed)
		return;
	memmove(aml->out.data + start + n, aml->out.data + start, size);
	memcpy(aml->out.data + start, bytes, n);
}

/* The size of a buffer stands between its length and its bytes. */
static void insert_buffer_size(struct aml *aml, size_t start)
{
	size_t size = aml->out.at - start;
	uint8_t term[3] = {OP_BYTE, size, size >> 8};

	assert(size <= UINT16_MAX);
	if (size > UINT8_MAX)
		term[0] = OP_WORD;
	insert(aml, start, term, size > UINT8_MAX ? 3 : 2);
}

void aml_end(struct aml *aml)
{
	uint8_t bytes[LENGTH_BYTES_MAX];
	size_t start, body;
	uint32_t n;

	assert(aml->depth > 0);
	aml->depth--;
	start = aml->open[aml->depth].start;
	if (aml->open[aml->depth].resources) {
		cursor_put_u8(&aml->out, RES_END);
		cursor_put_u8(&aml->out, 0); /* checksum: 0 is "not computed" */
		insert_buffer_size(aml, start);
	}
	body = aml->out.at - start;
	n = length_bytes(body);
	insert(aml, start, bytes, encode_length(body + n, n, bytes));
}

void aml_scope(struct aml *aml, const char *path)
{
	cursor_put_u8(&aml->out, OP_SCOPE);
	block_open(aml, false);
	aml_path(aml, path);
}

void aml_device(struct aml *aml, const char *name)
{
	cursor_put_u8(&aml->out, OP_EXTENDED);
	cursor_put_u8(&aml->out, OP_EXT_DEVICE);
	block_open(aml, false);
	aml_path(aml, name);
}

void aml_method(struct aml *aml, const char *name, uint32_t n_args, bool serialized)
{
	assert(n_args <= 7);
	cursor_put_u8(&aml->out, OP_METHOD);
	block_open(aml, false);
	aml_path(aml, name);
	cursor_put_u8(&aml->out, n_args | (serialized ? METHOD_SERIALIZED : 0));
}

void aml_package(struct aml *aml, uint8_t n_elements)
{
	cursor_put_u8(&aml->out, OP_PACKAGE);
	block_open(aml, false);
	cursor_put_u8(&aml->out, n_elements);
}

void aml_resources(struct aml *aml)
{
	cursor_put_u8(&aml->out, OP_BUFFER);
	block_open(aml, true);
}

void aml_if(struct aml *aml)
{
	cursor_put_u8(&aml->out, OP_IF);
	block_open(aml, false);
}

void aml_else(struct aml *aml)
{
	cursor_put_u8(&aml->out, OP_ELSE);
	block_open(aml, false);
}

void aml_field(struct aml *aml, const char *region)
{
	cursor_put_u8(&aml->out, OP_EXTENDED);
	cursor_put_u8(&aml->out, OP_EXT_FIELD);
	block_open(aml, false);
	aml_path(aml, region);
	cursor_put_u8(&aml->out, FIELD_BYTE);
}

void aml_field32(struct aml *aml, const char *region)
{
	cursor_put_u8(&aml->out, OP_EXTENDED);
	cursor_put_u8(&aml->out, OP_EXT_FIELD);
	block_open(aml, false);
	aml_path(aml, region);
	cursor_put_u8(&aml->out, FIELD_DWORD_ZEROS);
}

void aml_name(struct aml *aml, const char *name)
{
	cursor_put_u8(&aml->out, OP_NAME);
	aml_path(aml, name);
}

void aml_name_integer(struct aml *aml, const char *name, uint64_t value)
{
	aml_name(aml, name);
	aml_integer(aml, value);
}

void aml_name_string(struct aml *aml, const char *name, const char *text)
{
	aml_name(aml, name);
	aml_string(aml, text);
}

void aml_name_eisa_id(struct aml *aml, const char *name, const char *id)
{
	aml_name(aml, name);
	aml_eisa_id(aml, id);
}

void aml_integer(struct aml *aml, uint64_t value)
{
	if (value <= 1) {
		cursor_put_u8(&aml->out, value); /* Zero, One */
	} else if (value <= UINT8_MAX) {
		cursor_put_u8(&aml->out, OP_BYTE);
		cursor_put_u8(&aml->out, value);
	} else if (value <= UINT16_MAX) {
		cursor_put_u8(&aml->out, OP_WORD);
		cursor_put_u16(&aml->out, value);
	} else if (value <= UINT32_MAX) {
		cursor_put_u8(&aml->out, OP_DWORD);
		cursor_put_u32(&aml->out, value);
	} else {
		cursor_put_u8(&aml->out, OP_QWORD);
		cursor_put_u64(&aml->out, value);
	}
}

void aml_string(struct aml *aml, const char *text)
{
	cursor_put_u8(&aml->out, OP_STRING);
	cursor_put_bytes(&aml->out, text, strlen(text) + 1);
}

static uint32_t hex_digit(char c)
{
	assert(isxdigit((unsigned char)c) && !islower((unsigned char)c));
	return isdigit((unsigned char)c) ? c - '0' : c - 'A' + 10;
}

/* Three letters in five bits each, four hexadecimal digits, all of it big-endian. */
void aml_eisa_id(struct aml *aml, const char *id)
{
	uint32_t value = 0;

	assert(strlen(id) == 7);
	for (uint32_t i = 0; i < 3; i++)
		value = value << 5 | (id[i] - 'A' + 1);
	for (uint32_t i = 3; i < 7; i++)
		value = value << 4 | hex_digit(id[i]);
	cursor_put_u8(&aml->out, OP_DWORD);
	cursor_put_u32(&aml->out, __builtin_bswap32(value));
}

void aml_local(struct aml *aml, uint32_t number)
{
	assert(number <= 7);
	cursor_put_u8(&aml->out, OP_LOCAL0 + number);
}

void aml_arg(struct aml *aml, uint32_t number)
{
	assert(number <= 6);
	cursor_put_u8(&aml->out, OP_ARG0 + number);
}

void aml_operator(struct aml *aml, enum aml_operator operator)
{
	cursor_put_u8(&aml->out, operator);
}

void aml_nowhere(struct aml *aml)
{
	cursor_put_u8(&aml->out, 0);
}

void aml_notify(struct aml *aml, const char *path, uint64_t value)
{
	aml_operator(aml, AML_NOTIFY);
	aml_path(aml, path);
	aml_integer(aml, value);
}

void aml_port_region(struct aml *aml, const char *name, uint16_t port, uint16_t size)
{
	cursor_put_u8(&aml->out, OP_EXTENDED);
	cursor_put_u8(&aml->out, OP_EXT_REGION);
	aml_path(aml, name);
	cursor_put_u8(&aml->out, REGION_IO);
	aml_integer(aml, port);
	aml_integer(aml, size);
}

/* Here the length is a number of bits and does not count itself. */
void aml_field_bits(struct aml *aml, const char *name, uint32_t n_bits)
{
	uint8_t bytes[LENGTH_BYTES_MAX];

	put_segment(aml, name, strlen(name));
	cursor_put_bytes(&aml->out, bytes,
			 encode_length(n_bits, n_bits < 1u << 6 ? 1 : length_bytes(n_bits), bytes));
}

void aml_io(struct aml *aml, uint16_t port, uint8_t size)
{
	cursor_put_u8(&aml->out, RES_IO);
	cursor_put_u8(&aml->out, 1); /* decodes 16 bits */
	cursor_put_u16(&aml->out, port);
	cursor_put_u16(&aml->out, port);
	cursor_put_u8(&aml->out, 1); /* alignment */
	cursor_put_u8(&aml->out, size);
}

void aml_memory32(struct aml *aml, uint32_t start, uint32_t size)
{
	cursor_put_u8(&aml->out, RES_MEMORY32);
	cursor_put_u16(&aml->out, 9);
	cursor_put_u8(&aml->out, 1); /* may be written */
	cursor_put_u32(&aml->out, start);
	cursor_put_u32(&aml->out, size);
}

void aml_interrupt_edge(struct aml *aml, uint32_t gsi)
{
	cursor_put_u8(&aml->out, RES_INTERRUPT);
	cursor_put_u16(&aml->out, 6);
	cursor_put_u8(&aml->out, 3); /* consumer, edge */
	cursor_put_u8(&aml->out, 1);
	cursor_put_u32(&aml->out, gsi);
}

static void put_window(struct aml *aml, uint8_t kind, uint16_t length, uint8_t type, uint8_t flags)
{
	cursor_put_u8(&aml->out, kind);
	cursor_put_u16(&aml->out, length);
	cursor_put_u8(&aml->out, type);
	cursor_put_u8(&aml->out, WINDOW_FIXED);
	cursor_put_u8(&aml->out, flags);
}

/* Granularity, first, last, translation, size. */
static void put_range16(struct aml *aml, uint16_t first, uint16_t last)
{
	cursor_put_u16(&aml->out, 0);
	cursor_put_u16(&aml->out, first);
	cursor_put_u16(&aml->out, last);
	cursor_put_u16(&aml->out, 0);
	cursor_put_u16(&aml->out, last - first + 1);
}

void aml_bus_window(struct aml *aml, uint16_t first, uint16_t last)
{
	put_window(aml, RES_WORD, 13, WINDOW_BUS, 0);
	put_range16(aml, first, last);
}

void aml_io_window(struct aml *aml, uint16_t first, uint16_t last)
{
	put_window(aml, RES_WORD, 13, WINDOW_IO, WINDOW_IO_ENTIRE);
	put_range16(aml, first, last);
}

void aml_memory32_window(struct aml *aml, uint32_t first, uint32_t last)
{
	put_window(aml, RES_DWORD, 23, WINDOW_MEMORY, WINDOW_READ_WRITE);
	cursor_put_u32(&aml->out, 0);
	cursor_put_u32(&aml->out, first);
	cursor_put_u32(&aml->out, last);
	cursor_put_u32(&aml->out, 0);
	cursor_put_u32(&aml->out, last - first + 1);
}

void aml_memory64_window(struct aml *aml, uint64_t first, uint64_t last)
{
	put_window(aml, RES_QWORD, 43, WINDOW_MEMORY, WINDOW_READ_WRITE);
	cursor_put_u64(&aml->out, 0);
	cursor_put_u64(&aml->out, first);
	cursor_put_u64(&aml->out, last);
	cursor_put_u64(&aml->out, 0);
	cursor_put_u64(&aml->out, last - first + 1);
}
