/* Opens a socket and sends back what comes over each connection, until its other end has been closed for writing. */
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

static int echo(int connection)
{
	static char bytes[1 << 16];
	ssize_t count;

	while ((count = read(connection, bytes, sizeof(bytes))) > 0) {
		ssize_t done = 0;

		while (done < count) {
			ssize_t written = write(connection, bytes + done, count - done);

			if (written < 0)
				return -1;
			done += written;
		}
	}
	return count < 0 ? -1 : 0;
}

int main(int argc, char **argv)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	int listener = socket(AF_UNIX, SOCK_STREAM, 0);

	if (argc != 2 || strlen(argv[1]) >= sizeof(address.sun_path))
		return 2;
	strcpy(address.sun_path, argv[1]);
	if (listener < 0 || bind(listener, (struct sockaddr *)&address, sizeof(address)) || listen(listener, 16)) {
		perror(argv[1]);
		return 1;
	}
	for (;;) {
		int connection = accept(listener, NULL, NULL);

		if (connection < 0 || echo(connection))
			perror("connection");
		close(connection);
	}
}
