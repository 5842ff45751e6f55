extern int stop(void);
extern long nap(long ms);
extern void note(long value);
extern void take(void), give(void);
extern long count, other;

int loop(void *data)
{
	long *mine = data;

	while (!stop()) {
		if (__builtin_expect(count < 0, 0)) {
			note(2);
			__builtin_trap();
		}
		nap(10);
		*mine += 1;
	}
	return 0;
}
