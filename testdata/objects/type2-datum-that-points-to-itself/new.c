struct buffer { char *next; long used; char bytes[16]; };
static struct buffer buffer = { buffer.bytes };
void put(char c) { *buffer.next++ = c; buffer.used++; }
