package target

import (
	"context"
	"errors"
	"io"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// StreamEnds records how a server ended the streams of one connection. Ends that the client itself caused are left
// out: only what a server did is of interest.
type StreamEnds struct {
	// mu guards ends, in the order in which they were seen.
	mu   sync.Mutex
	ends []StreamEnd
}

// StreamEnd is one stream's end.
type StreamEnd struct {
	// Method is the full gRPC method, `/service/Method`.
	Method string
	// Code is OK for a stream that ended by itself.
	Code codes.Code
	// Message is the status message.
	Message string
}

// Record is the dial option that makes a connection report to e.
func (e *StreamEnds) Record() grpc.DialOption {
	return grpc.WithChainStreamInterceptor(func(
		ctx context.Context, description *grpc.StreamDesc, connection *grpc.ClientConn, method string,
		streamer grpc.Streamer, options ...grpc.CallOption,
	) (grpc.ClientStream, error) {
		stream, err := streamer(ctx, description, connection, method, options...)
		if err != nil {
			e.add(ctx, method, err)
			return nil, err
		}
		return &recordedStream{ClientStream: stream, ctx: ctx, ends: e, method: method}, nil
	})
}

// All returns the ends so far.
func (e *StreamEnds) All() []StreamEnd {
	e.mu.Lock()
	defer e.mu.Unlock()
	return append([]StreamEnd(nil), e.ends...)
}

// With returns the ends so far that have the code.
func (e *StreamEnds) With(code codes.Code) []StreamEnd {
	var matching []StreamEnd
	for _, end := range e.All() {
		if end.Code == code {
			matching = append(matching, end)
		}
	}
	return matching
}

func (e *StreamEnds) add(ctx context.Context, method string, err error) {
	if ctx.Err() != nil {
		return
	}
	end := StreamEnd{Method: method}
	if !errors.Is(err, io.EOF) {
		end.Code, end.Message = status.Code(err), status.Convert(err).Message()
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.ends = append(e.ends, end)
}

type recordedStream struct {
	grpc.ClientStream
	// ctx is the caller's: the stream's own is cancelled by its end, whoever caused that.
	ctx    context.Context
	ends   *StreamEnds
	method string
}

func (s *recordedStream) RecvMsg(message any) error {
	err := s.ClientStream.RecvMsg(message)
	if err != nil {
		s.ends.add(s.ctx, s.method, err)
	}
	return err
}
