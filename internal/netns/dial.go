package netns

import (
	"context"
	"fmt"
	"net"

	"golang.org/x/sys/unix"
)

// DialTCP connects to an IP address with a port as the network namespace pinned at path
// sees it; "" is the caller's own. A socket stays in the namespace that it was made in,
// so that the connection can be used anywhere; it keeps the namespace until it is closed.
func DialTCP(ctx context.Context, path, address string) (conn *net.TCPConn, err error) {
	dial := func() error {
		var d net.Dialer
		// One address, and no name: the socket is made by this very thread.
		c, err := d.DialContext(ctx, "tcp", address)
		if err != nil {
			return err
		}
		conn = c.(*net.TCPConn)
		return nil
	}
	if path == "" {
		err = dial()
		return conn, err
	}
	err = onThread(ctx, func() error {
		if err := enter(path, unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter %s: %w", path, err)
		}
		return dial()
	})
	return conn, err
}
