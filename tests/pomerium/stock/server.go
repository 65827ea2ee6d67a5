//go:build embed_pomerium

// Package stock runs the databroker server of Pomerium itself, unchanged, without the Envoy, configuration and control
// plane that surround it in a whole Pomerium.
//
// It is the oracle that answers are compared with, the rival that speed is compared with, and the follower of topology
// tests. What a client sees is what Pomerium's own process serves behind its listener: the same server type, JWT check,
// storage backends, health and reflection services. Left out is what lives in Pomerium's unexported packages: the
// request log, the HealthNotifier service and the Connect handler of ConfigService.
package stock

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/volatiletech/null/v9"
	"go.opentelemetry.io/contrib/instrumentation/google.golang.org/grpc/otelgrpc"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/reflection"

	"github.com/pomerium/pomerium/config"
	"github.com/pomerium/pomerium/databroker"
	"github.com/pomerium/pomerium/pkg/envoy/files"
	pomeriumgrpc "github.com/pomerium/pomerium/pkg/grpc"
	databrokerpb "github.com/pomerium/pomerium/pkg/grpc/databroker"
	registrypb "github.com/pomerium/pomerium/pkg/grpc/registry"
	"github.com/pomerium/pomerium/pkg/grpcutil"
	"github.com/pomerium/pomerium/pkg/identity/manager"
	"github.com/pomerium/pomerium/pkg/telemetry/requestid"
	"github.com/pomerium/pomerium/pkg/telemetry/trace"
)

// The identifiers of the two nodes of a cluster in which a stock server follows another one. Pomerium never sends them
// to the leader, so the leader needs no identifier of its own.
const (
	leaderNodeID   = "leader"
	followerNodeID = "follower"
)

// init names the Envoy that is not there: Pomerium puts its version into every response and fails without one.
func init() {
	files.SetFiles(nil, "none", "none")
}

// Config says how one stock server runs.
type Config struct {
	// Address to listen on, `host:port`; port 0 takes a free one.
	Address string
	// SharedSecret in base64, 32 bytes when decoded.
	SharedSecret string
	// StorageType is "memory", "file" or "postgres".
	StorageType string
	// StorageConnectionString is empty for memory, `file:///path` for file and a postgres:// URL for postgres.
	StorageConnectionString string
	// LeaderAddress is the `host:port` of the databroker that this server follows, empty for a server of its own.
	LeaderAddress string
	// IdentityManager tells whether sessions are refreshed by this process, as in every databroker of Pomerium.
	IdentityManager bool
	// ManagerOptions are added after Pomerium's own; tests replace the identity provider with them.
	ManagerOptions []manager.Option
	// Tracer tells whether spans are recorded as in a Pomerium without an exporter, where they are made and dropped.
	Tracer bool
	// File is a configuration file of Pomerium's, read by Pomerium's own code; it goes before all fields above but
	// Address and the identity manager's.
	File string
	// GracePeriod is how long open calls may go on at shutdown; Pomerium waits 5 seconds.
	GracePeriod time.Duration
}

// service is what both of Pomerium's ways to run a databroker have in common.
type service interface {
	OnConfigChange(ctx context.Context, cfg *config.Config)
	Register(server *grpc.Server)
	Run(ctx context.Context) error
}

// Serve runs a stock server until ctx ends. It calls ready with the bound address once clients can connect.
func Serve(ctx context.Context, cfg Config, ready func(address string)) error {
	if cfg.Tracer {
		ctx = trace.NewContext(ctx, trace.NoopClient{})
	}
	pomeriumConfig, err := cfg.pomerium(ctx)
	if err != nil {
		return err
	}
	services, err := newService(ctx, cfg, pomeriumConfig)
	if err != nil {
		return fmt.Errorf("making the databroker: %w", err)
	}
	// The server refuses every call until it has been told the configuration, shared secret included.
	services.OnConfigChange(ctx, pomeriumConfig)
	listener, err := net.Listen("tcp", cfg.Address)
	if err != nil {
		return fmt.Errorf("listening on %s: %w", cfg.Address, err)
	}
	server := newGRPCServer(ctx)
	services.Register(server)

	ctx, cancel := context.WithCancel(ctx)
	background := make(chan error, 1)
	go func() {
		defer cancel()
		background <- services.Run(ctx)
	}()
	ready(listener.Addr().String())
	err = grpcutil.ServeWithGracefulStop(ctx, server, listener, cfg.GracePeriod)
	cancel()
	if backgroundErr := <-background; err == nil && !errors.Is(backgroundErr, context.Canceled) {
		err = backgroundErr
	}
	return err
}

// pomerium translates into Pomerium's configuration.
func (cfg Config) pomerium(ctx context.Context) (*config.Config, error) {
	if cfg.File != "" {
		source, err := config.NewFileOrEnvironmentSource(ctx, cfg.File, "none")
		if err != nil {
			return nil, err
		}
		return source.GetConfig(), nil
	}
	options := config.NewDefaultOptions()
	options.Services = "databroker"
	options.SharedKey = cfg.SharedSecret
	options.DataBroker.StorageType = cfg.StorageType
	options.DataBroker.StorageConnectionString = cfg.StorageConnectionString
	if cfg.LeaderAddress != "" {
		options.DataBroker.ClusterNodeID = null.StringFrom(followerNodeID)
		options.DataBroker.ClusterLeaderID = null.StringFrom(leaderNodeID)
		options.DataBroker.ClusterNodes = config.DataBrokerClusterNodes{
			{ID: leaderNodeID, GRPCAddress: "http://" + cfg.LeaderAddress},
			{ID: followerNodeID, GRPCAddress: "http://" + cfg.Address},
		}
	}
	if _, err := options.GetSharedKey(); err != nil {
		return nil, fmt.Errorf("reading the shared secret: %w", err)
	}
	if err := options.DataBroker.Validate(); err != nil {
		return nil, err
	}
	return &config.Config{Options: options}, nil
}

func newService(ctx context.Context, cfg Config, pomeriumConfig *config.Config) (service, error) {
	if cfg.IdentityManager {
		return databroker.New(ctx, pomeriumConfig, nil, databroker.WithManagerOptions(cfg.ManagerOptions...))
	}
	return withoutManager{databroker.NewServer(trace.NewTracerProvider(ctx, "Data Broker"), pomeriumConfig)}, nil
}

// newGRPCServer makes a server with the interceptors, health and reflection of Pomerium's control plane.
func newGRPCServer(ctx context.Context) *grpc.Server {
	unaryVersion, streamVersion := grpcutil.AttachMetadataInterceptors(metadata.Pairs(
		grpcutil.MetadataKeyEnvoyVersion, files.FullVersion(),
		grpcutil.MetadataKeyPomeriumVersion, "v0.32.0",
	))
	tracerProvider := trace.NewTracerProvider(ctx, "Control Plane")
	server := grpc.NewServer(
		grpc.StatsHandler(otelgrpc.NewServerHandler(otelgrpc.WithTracerProvider(tracerProvider))),
		grpc.ChainUnaryInterceptor(requestid.UnaryServerInterceptor(), unaryVersion),
		grpc.ChainStreamInterceptor(requestid.StreamServerInterceptor(), streamVersion),
	)
	reflection.Register(server)
	grpc_health_v1.RegisterHealthServer(server, pomeriumgrpc.NewHealthCheckServer())
	return server
}

// databrokerServer is the part of Pomerium's unexported server interface that is needed here.
type databrokerServer interface {
	databrokerpb.CheckpointServiceServer
	databrokerpb.DataBrokerServiceServer
	registrypb.RegistryServer
	OnConfigChange(ctx context.Context, cfg *config.Config)
	Stop()
}

// withoutManager is a databroker that refreshes no sessions.
type withoutManager struct{ databrokerServer }

func (s withoutManager) Register(server *grpc.Server) {
	databrokerpb.RegisterCheckpointServiceServer(server, s)
	databrokerpb.RegisterDataBrokerServiceServer(server, s)
	registrypb.RegisterRegistryServer(server, s)
}

func (s withoutManager) Run(ctx context.Context) error {
	<-ctx.Done()
	s.Stop()
	return ctx.Err()
}

// PrintReady returns a callback for Serve that tells a parent process the bound address, in the same words as other
// servers of these tests.
func PrintReady(out io.Writer) func(address string) {
	return func(address string) { _, _ = fmt.Fprintln(out, "listening on", address) }
}
