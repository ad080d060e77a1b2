/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Text to and from the host through the 16550 at 0x3f8. Output polls the line status register, so
 * that nothing is lost on a slow host; input comes by interrupt into a ring, so that a waiting
 * guest sleeps. Lines of several CPUs do not mix: print() holds a lock for one call.
 */
#include "guest-tests/runtime/apic.h"
#include "guest-tests/runtime/board.h"
#include "guest-tests/runtime/guest.h"

#define REG_DATA      (BOARD_SERIAL_PORT + 0)
#define REG_IER       (BOARD_SERIAL_PORT + 1)
#define REG_FCR       (BOARD_SERIAL_PORT + 2)
#define REG_IIR       (BOARD_SERIAL_PORT + 2)
#define REG_LCR       (BOARD_SERIAL_PORT + 3)
#define REG_MCR       (BOARD_SERIAL_PORT + 4)
#define REG_LSR       (BOARD_SERIAL_PORT + 5)
#define LSR_DATA      0x01
#define LSR_THR_EMPTY 0x20

#define RING_SIZE     256

static uint8_t ring[RING_SIZE];
static volatile unsigned int ring_head, ring_tail;
static unsigned int print_lock;
static void (*write_text)(const char *text, size_t len) = serial_write;

void serial_init(void)
{
	outb(REG_IER, 0);
	outb(REG_LCR, 0x03);
	outb(REG_FCR, 0x07);
	outb(REG_MCR, 0x0b);
}

void serial_write(const char *text, size_t len)
{
	for (size_t i = 0; i < len; i++) {
		while (!(inb(REG_LSR) & LSR_THR_EMPTY))
			cpu_relax();
		outb(REG_DATA, text[i]);
	}
}

void print_through(void (*write)(const char *text, size_t len))
{
	write_text = write;
}

struct out {
	char text[256];
	size_t len;
};

static void put(struct out *out, char c)
{
	if (out->len < sizeof(out->text))
		out->text[out->len++] = c;
}

static void put_number(struct out *out, uint64_t value, unsigned int base, unsigned int width,
		       char pad)
{
	char digits[24];
	unsigned int n = 0;

	do {
		digits[n++] = "0123456789abcdef"[value % base];
		value /= base;
	} while (value);
	while (width-- > n && n < sizeof(digits))
		put(out, pad);
	while (n)
		put(out, digits[--n]);
}

/* Returns the character after the conversion. */
static const char *put_conversion(struct out *out, const char *f, va_list *args)
{
	char pad = *f == '0' ? '0' : ' ';
	unsigned int width = 0;
	bool is_long = false;

	for (; *f >= '0' && *f <= '9'; f++)
		width = width * 10 + (*f - '0');
	for (; *f == 'l' || *f == 'z'; f++)
		is_long = true;
	switch (*f) {
	case 's':
		for (const char *s = va_arg(*args, const char *); *s; s++)
			put(out, *s);
		break;
	case 'c':
		put(out, va_arg(*args, int));
		break;
	case 'd': {
		long value = is_long ? va_arg(*args, long) : va_arg(*args, int);

		if (value < 0)
			put(out, '-');
		put_number(out, value < 0 ? -(uint64_t)value : (uint64_t)value, 10, width, pad);
		break;
	}
	case 'u':
	case 'x':
		put_number(out,
			   is_long ? va_arg(*args, unsigned long) : va_arg(*args, unsigned int),
			   *f == 'x' ? 16 : 10, width, pad);
		break;
	case 'p':
		put_number(out, va_arg(*args, uintptr_t), 16, width, pad);
		break;
	default:
		put(out, *f);
	}
	return f + 1;
}

static void format(struct out *out, const char *f, va_list *args)
{
	while (*f) {
		if (*f == '%')
			f = put_conversion(out, f + 1, args);
		else
			put(out, *f++);
	}
}

static void flush(const struct out *out)
{
	while (__atomic_exchange_n(&print_lock, 1, __ATOMIC_ACQUIRE))
		cpu_relax();
	write_text(out->text, out->len);
	__atomic_store_n(&print_lock, 0, __ATOMIC_RELEASE);
}

void print(const char *text, ...)
{
	struct out out;
	va_list args;

	out.len = 0;
	va_start(args, text);
	format(&out, text, &args);
	va_end(args);
	flush(&out);
}

static void put_text(struct out *out, const char *text)
{
	while (*text)
		put(out, *text++);
}

void note(const char *text, ...)
{
	struct out out;
	va_list args;

	out.len = 0;
	put_text(&out, "NOTE ");
	va_start(args, text);
	format(&out, text, &args);
	va_end(args);
	put(&out, '\n');
	flush(&out);
}

void guest_fail(const char *file, int line, const char *what, const char *text, ...)
{
	struct out out;
	va_list args;

	out.len = 0;
	for (const char *s = file; *s; s++) {
		if (*s == '/')
			file = s + 1;
	}
	put_text(&out, "FAIL ");
	put_text(&out, file);
	put(&out, ':');
	put_number(&out, line, 10, 0, ' ');
	put_text(&out, ": ");
	put_text(&out, what);
	put_text(&out, ": ");
	va_start(args, text);
	format(&out, text, &args);
	va_end(args);
	put(&out, '\n');
	/* The lock may be held by what failed. */
	write_text(out.text, out.len);
	power_off();
}

static void receive(void *arg)
{
	(void)arg;
	(void)inb(REG_IIR);
	while (inb(REG_LSR) & LSR_DATA) {
		uint8_t byte = inb(REG_DATA);

		if (ring_head - ring_tail < RING_SIZE)
			ring[ring_head++ % RING_SIZE] = byte;
	}
}

void serial_listen(void)
{
	ioapic_route(BOARD_SERIAL_GSI, irq_alloc(receive, NULL), apic_id());
	outb(REG_IER, 0x01);
}

bool serial_has_input(void)
{
	return ring_head != ring_tail;
}

bool serial_read_line(char *ret_line, size_t size, unsigned int timeout_ms)
{
	size_t len = 0;

	for (;;) {
		char c;

		if (!WAIT_UNTIL(ring_head != ring_tail, timeout_ms))
			return false;
		c = ring[ring_tail++ % RING_SIZE];
		if (c == '\n' || c == '\r')
			break;
		if (len + 1 < size)
			ret_line[len++] = c;
	}
	ret_line[len] = 0;
	return true;
}
