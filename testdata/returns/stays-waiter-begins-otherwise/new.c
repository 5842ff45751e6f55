extern int stop(void);
extern long nap(long ms);
extern void note(long value);
extern void take(void), give(void);
extern long count, other;
struct wait { struct wait *next, *previous; void *task; };
extern void enter(struct wait *wait), leave(struct wait *wait);

int loop(void *data)
{
	while (!stop()) {
		struct wait wait = { &wait, &wait, (void *)&count };

		enter(&wait);
		while (!count)
			nap(10);
		leave(&wait);
		note(1);
	}
	return 0;
}
