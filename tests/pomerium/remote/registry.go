package remote

import (
	"context"

	"google.golang.org/grpc"

	registrypb "github.com/pomerium/pomerium/pkg/grpc/registry"
)

// Report announces services.
func (b *Backend) Report(
	ctx context.Context, request *registrypb.RegisterRequest,
) (*registrypb.RegisterResponse, error) {
	response, err := b.registry.Report(ctx, request)
	return response, b.failure(ctx, err)
}

// List returns the services that were announced lately.
func (b *Backend) List(ctx context.Context, request *registrypb.ListRequest) (*registrypb.ServiceList, error) {
	response, err := b.registry.List(ctx, request)
	return response, b.failure(ctx, err)
}

// Watch passes on each list of services until the caller's context ends.
func (b *Backend) Watch(
	request *registrypb.ListRequest, caller grpc.ServerStreamingServer[registrypb.ServiceList],
) error {
	ctx := caller.Context()
	stream, err := b.registry.Watch(ctx, request)
	if err != nil {
		return b.failure(ctx, err)
	}
	for {
		services, err := stream.Recv()
		if err != nil {
			return b.failure(ctx, err)
		}
		if err := caller.Send(services); err != nil {
			return err
		}
	}
}
