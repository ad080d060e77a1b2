/* SPDX-License-Identifier: Apache-2.0 */
/*
 * In: the page of counters, five times a second. Out: a bar with share, rate and time left. The
 * numbers come from the sealed process and are only ever divided.
 */
#include "disk/progress.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "base/clock.h"
#include "disk/text.h"

#define STEP_MS      200
#define JSON_STEP_MS 1000
#define BAR_MAX      30
#define COLUMNS_MIN  60

struct state {
	uint64_t done, total, moved;
	double share, left; /* 0 to 1; seconds, negative: not known */
};

int progress_init(struct progress *progress, const char *word, const char *what,
		  const struct link_page *page, struct error *err)
{
	uint64_t now = clock_ms();

	*progress = (struct progress){
		.what = what, .page = page, .begun = now, .shown = now, .last_at = now};
	if (!word)
		progress->kind = isatty(STDERR_FILENO) ? PROGRESS_BAR : PROGRESS_NONE;
	else if (!strcmp(word, "bar"))
		progress->kind = PROGRESS_BAR;
	else if (!strcmp(word, "json"))
		progress->kind = PROGRESS_JSON;
	else if (!strcmp(word, "none"))
		progress->kind = PROGRESS_NONE;
	else
		return error_set(err, -EINVAL, "--progress: \"%s\" must be one of bar, json, none",
				 word);
	return 0;
}

static uint64_t step(const struct progress *progress)
{
	return progress->kind == PROGRESS_JSON && progress->begun_shown ? JSON_STEP_MS : STEP_MS;
}

int progress_wait(const struct progress *progress)
{
	uint64_t now = clock_ms(), next = progress->shown + step(progress);

	if (progress->kind == PROGRESS_NONE)
		return -1;
	return next > now ? (int)(next - now) : 0;
}

/* Time left goes by how the share grows; the rate by bytes that were moved. Both follow the last
 * few seconds, since holes are passed in no time. */
static struct state look(struct progress *progress, uint64_t now)
{
	struct state state = {
		.done = atomic_load(&progress->page->done),
		.total = atomic_load(&progress->page->total),
		.moved = atomic_load(&progress->page->moved),
		.left = -1,
	};
	double elapsed = (double)(now - progress->begun) / 1e3;
	double since = (double)(now - progress->last_at) / 1e3;

	state.done = MIN(state.done, state.total);
	if (state.total)
		state.share = (double)state.done / (double)state.total;
	if (since > 0 && state.moved >= progress->last_moved) {
		double rate = (double)(state.moved - progress->last_moved) / since;

		progress->rate = progress->rate > 0 ? progress->rate * 0.7 + rate * 0.3 : rate;
		progress->last_moved = state.moved;
		progress->last_at = now;
	}
	if (state.share > 0.01 && elapsed > 1)
		state.left = elapsed * (1 - state.share) / state.share;
	return state;
}

static int columns(void)
{
	struct winsize size = {0};

	if (ioctl(STDERR_FILENO, TIOCGWINSZ, &size) < 0 || !size.ws_col)
		return 80;
	return size.ws_col;
}

/* One write: what others print does not come between. */
static void put(const char *text)
{
	if (write(STDERR_FILENO, text, strlen(text)) < 0)
		return; /* nobody left to tell */
}

static void draw(struct progress *progress, const struct state *state)
{
	char done[TEXT_SIZE_MAX], total[TEXT_SIZE_MAX], rate[TEXT_SIZE_MAX], left[TEXT_TIME_MAX];
	char line[256], bar[BAR_MAX + 1];
	int filled, width = columns() - COLUMNS_MIN;

	width = width < 0 ? 0 : width > BAR_MAX ? BAR_MAX : width;
	filled = (int)(state->share * width);
	memset(bar, '.', sizeof(bar));
	memset(bar, '#', (size_t)filled);
	bar[width] = '\0';
	snprintf(line, sizeof(line), "\r%s %3.0f%% %s%s%s of %s, %s/s%s%s\033[K", progress->what,
		 state->share * 100, bar, width ? " " : "", text_size(state->done, done),
		 text_size(state->total, total), text_size((uint64_t)progress->rate, rate),
		 state->left < 0 ? "" : ", left: ",
		 state->left < 0 ? "" : text_time(state->left, left));
	put(line);
	progress->drawn = true;
}

static void print_json(const struct progress *progress, const struct state *state, double seconds)
{
	char line[400], left[40] = "null";

	if (state->left >= 0)
		snprintf(left, sizeof(left), "%.1f", state->left);
	snprintf(line, sizeof(line),
		 "{\"progress\": {\"verb\": \"%s\", \"done\": %lu, \"total\": %lu, \"moved\": %lu, "
		 "\"percent\": %.1f, \"bytes-per-second\": %.0f, \"seconds\": %.1f, "
		 "\"seconds-left\": %s}}\n",
		 progress->what, state->done, state->total, state->moved, state->share * 100,
		 progress->rate, seconds, left);
	put(line);
}

static void show(struct progress *progress, uint64_t now)
{
	struct state state = look(progress, now);

	progress->shown = now;
	if (!state.total)
		return;
	progress->begun_shown = true;
	if (progress->kind == PROGRESS_BAR)
		draw(progress, &state);
	else if (progress->kind == PROGRESS_JSON)
		print_json(progress, &state, (double)(now - progress->begun) / 1e3);
}

void progress_show(struct progress *progress)
{
	uint64_t now = clock_ms();

	if (progress->kind != PROGRESS_NONE && now - progress->shown >= step(progress))
		show(progress, now);
}

void progress_wipe(struct progress *progress)
{
	if (progress->drawn)
		put("\r\033[K");
	progress->drawn = false;
}

void progress_end(struct progress *progress)
{
	if (progress->kind == PROGRESS_JSON)
		show(progress, clock_ms());
	progress_wipe(progress);
}
