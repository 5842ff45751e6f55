int next(void)
{
	static int state = 40;
	return state++;
}
