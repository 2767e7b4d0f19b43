package monitor

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"

	"golang.org/x/sys/unix"
)

// The protocol's numbers, as in conmon/PROTOCOL.md.
const (
	protocolVersion = 1
	headerSize      = 8
	statusSize      = 32
	maxPacket       = 8192
	maxPayload      = maxPacket - headerSize

	typeHello    = 1
	typeReopen   = 2
	typeResize   = 3
	typeKill     = 4
	typeStatus   = 5
	typeAttach   = 6
	typeAckExit  = 7
	typeInput    = 8
	typeInputEnd = 9

	typeReply     = 0x80
	pushStarted   = 0x40
	pushFailed    = 0x41
	pushExit      = 0x42
	pushOutput    = 0x43
	pushOutputEnd = 0x44
)

// packet is one message. For a reply, payload begins after the errno.
type packet struct {
	kind    byte
	seq     uint32
	errno   unix.Errno
	payload []byte
}

// encode makes a request.
func encode(kind byte, seq uint32, payload []byte) []byte {
	b := make([]byte, headerSize, headerSize+len(payload))
	b[0], b[1] = protocolVersion, kind
	binary.LittleEndian.PutUint32(b[4:], seq)
	return append(b, payload...)
}

// decode reads a reply or a push. The payload aliases b.
func decode(b []byte) (packet, error) {
	if len(b) < headerSize {
		return packet{}, fmt.Errorf("packet of %d bytes", len(b))
	}
	p := packet{kind: b[1], seq: binary.LittleEndian.Uint32(b[4:]), payload: b[headerSize:]}
	if p.kind&typeReply == 0 {
		if b[0] != protocolVersion {
			return packet{}, fmt.Errorf("version %d of the protocol", b[0])
		}
		return p, nil
	}
	// A reply of another version still says why there is no other answer.
	if len(p.payload) < 4 {
		return packet{}, errors.New("reply without an errno")
	}
	p.errno = unix.Errno(binary.LittleEndian.Uint32(p.payload))
	p.payload = p.payload[4:]
	return p, nil
}

// receive reads one packet into buffer, which its payload aliases. A monitor that has
// closed with something of ours unread is told once as ECONNRESET; what it had sent
// before is still to be had.
func receive(socket *net.UnixConn, buffer []byte) (packet, error) {
	n, err := socket.Read(buffer)
	if errors.Is(err, unix.ECONNRESET) {
		n, err = socket.Read(buffer)
	}
	if err != nil {
		return packet{}, err
	}
	return decode(buffer[:n])
}

// decodeStatus accepts a longer payload: a newer monitor may append fields.
func decodeStatus(b []byte) (Status, error) {
	if len(b) < statusSize {
		return Status{}, fmt.Errorf("status of %d bytes", len(b))
	}
	le := binary.LittleEndian
	return Status{
		State:      State(le.Uint32(b)),
		Pid:        int(int32(le.Uint32(b[4:]))),
		StartTicks: le.Uint64(b[8:]),
		StartedAt:  int64(le.Uint64(b[16:])),
		Dropped:    le.Uint64(b[24:]),
	}, nil
}
