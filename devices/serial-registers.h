/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Registers of the 16550A, by their place and bits. Without logic.
 */
#pragma once

/* Offsets. With LCR_DIVISOR set, 0 and 1 are the divisor. */
#define SERIAL_DATA     0 /* RBR, THR */
#define SERIAL_IER      1
#define SERIAL_IIR      2 /* read */
#define SERIAL_FCR      2 /* write */
#define SERIAL_LCR      3
#define SERIAL_MCR      4
#define SERIAL_LSR      5
#define SERIAL_MSR      6
#define SERIAL_SCR      7

#define IER_RECEIVED    0x01
#define IER_TRANSMITTER 0x02
#define IER_LINE        0x04
#define IER_MODEM       0x08
#define IER_ALL         0x0f

#define IIR_NONE        0x01
#define IIR_MODEM       0x00
#define IIR_TRANSMITTER 0x02
#define IIR_RECEIVED    0x04
#define IIR_LINE        0x06
#define IIR_TIMEOUT     0x0c
#define IIR_FIFO        0xc0

#define FCR_ENABLE      0x01
#define FCR_CLEAR_RX    0x02
#define FCR_CLEAR_TX    0x04
#define FCR_TRIGGER     0xc0

#define LCR_DIVISOR     0x80

#define MCR_DTR         0x01
#define MCR_RTS         0x02
#define MCR_OUT1        0x04
#define MCR_OUT2        0x08
#define MCR_LOOP        0x10
#define MCR_ALL         0x1f

#define LSR_RECEIVED    0x01
#define LSR_OVERRUN     0x02
#define LSR_ERRORS      0x1e
#define LSR_EMPTY       0x60 /* holding register and shift register */

#define MSR_DELTAS      0x0f
#define MSR_DELTA_RING  0x04 /* only when it ends */
#define MSR_CTS         0x10
#define MSR_DSR         0x20
#define MSR_RING        0x40
#define MSR_DCD         0x80
