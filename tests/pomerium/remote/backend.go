// Package remote is Pomerium's storage.Backend, spoken over gRPC to a databroker that runs somewhere else.
//
// Pomerium tests each of its storages through that Go interface. With this package the same tests ask the same
// questions of any server that answers the databroker's protocol. Not everything in the interface has a word on the
// wire; [Limits] lists what has none and what is done instead.
package remote

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/fieldmaskpb"

	databrokerpb "github.com/pomerium/pomerium/pkg/grpc/databroker"
	registrypb "github.com/pomerium/pomerium/pkg/grpc/registry"
	"github.com/pomerium/pomerium/pkg/storage"
)

const (
	// cleanSlack is how long after the end of a server's history its next clean pass may come.
	cleanSlack = 30 * time.Second
	// cleanPoll is the time between two looks at whether it came.
	cleanPoll = 10 * time.Millisecond
)

// Backend implements storage.Backend and registry.RegistryServer with calls on one connection.
type Backend struct {
	connection  *grpc.ClientConn
	databroker  databrokerpb.DataBrokerServiceClient
	checkpoints databrokerpb.CheckpointServiceClient
	registry    registrypb.RegistryClient
	// history is how long the server keeps changes, and so how long Clean may have to wait.
	history time.Duration
	// closed is set by Close, to tell the calls that it cancels from those that a server cancels.
	closed atomic.Bool

	// mu guards written, the changes made through this backend, by which Clean knows what to wait for.
	mu      sync.Mutex
	written []change
}

type change struct {
	version uint64
	at      time.Time
}

var (
	_ storage.Backend           = (*Backend)(nil)
	_ registrypb.RegistryServer = (*Backend)(nil)
)

// New makes a backend on a connection, which Close closes. The server keeps changes for history.
func New(connection *grpc.ClientConn, history time.Duration) *Backend {
	return &Backend{
		connection:  connection,
		databroker:  databrokerpb.NewDataBrokerServiceClient(connection),
		checkpoints: databrokerpb.NewCheckpointServiceClient(connection),
		registry:    registrypb.NewRegistryClient(connection),
		history:     history,
	}
}

// Put upserts and deletes records and copies what the server made of them back into the given ones, as a storage does.
func (b *Backend) Put(ctx context.Context, records []*databrokerpb.Record) (uint64, error) {
	response, err := b.databroker.Put(ctx, &databrokerpb.PutRequest{Records: records})
	if err != nil {
		return 0, b.failure(ctx, err)
	}
	if len(response.GetRecords()) != len(records) {
		return 0, fmt.Errorf("put %d records, the server answered with %d", len(records), len(response.GetRecords()))
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for i, record := range response.GetRecords() {
		proto.Reset(records[i])
		proto.Merge(records[i], record)
		b.written = append(b.written, change{version: record.GetVersion(), at: record.GetModifiedAt().AsTime()})
	}
	return response.GetServerVersion(), nil
}

// Patch merges the masked fields into existing records and returns those that exist.
func (b *Backend) Patch(
	ctx context.Context, records []*databrokerpb.Record, fields *fieldmaskpb.FieldMask,
) (uint64, []*databrokerpb.Record, error) {
	response, err := b.databroker.Patch(ctx, &databrokerpb.PatchRequest{Records: records, FieldMask: fields})
	if err != nil {
		return 0, nil, b.failure(ctx, err)
	}
	return response.GetServerVersion(), response.GetRecords(), nil
}

// Get returns one record.
func (b *Backend) Get(ctx context.Context, recordType, id string) (*databrokerpb.Record, error) {
	response, err := b.databroker.Get(ctx, &databrokerpb.GetRequest{Type: recordType, Id: id})
	if err != nil {
		return nil, b.failure(ctx, err)
	}
	return response.GetRecord(), nil
}

// ListTypes returns the types that have records.
func (b *Backend) ListTypes(ctx context.Context) ([]string, error) {
	response, err := b.databroker.ListTypes(ctx, new(emptypb.Empty))
	if err != nil {
		return nil, b.failure(ctx, err)
	}
	return response.GetTypes(), nil
}

// SyncLatest returns the live records, or with a filter those that match it.
func (b *Backend) SyncLatest(
	ctx context.Context, recordType string, filter storage.FilterExpression,
) (serverVersion, recordVersion uint64, _ storage.RecordIterator, _ error) {
	if filter != nil {
		return b.query(ctx, recordType, filter)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := b.databroker.SyncLatest(ctx, &databrokerpb.SyncLatestRequest{Type: recordType})
	if err != nil {
		return 0, 0, nil, b.failure(ctx, err)
	}
	var records []*databrokerpb.Record
	var versions *databrokerpb.Versions
	for {
		response, err := stream.Recv()
		switch {
		case errors.Is(err, io.EOF) && versions == nil:
			return 0, 0, nil, errors.New("SyncLatest ended without the versions message that must come last")
		case errors.Is(err, io.EOF):
			return versions.GetServerVersion(), versions.GetLatestRecordVersion(), iterate(records), nil
		case err != nil:
			return 0, 0, nil, b.failure(ctx, err)
		case versions != nil:
			return 0, 0, nil, errors.New("SyncLatest went on after the versions message that must come last")
		}
		switch response := response.GetResponse().(type) {
		case *databrokerpb.SyncLatestResponse_Record:
			records = append(records, response.Record)
		case *databrokerpb.SyncLatestResponse_Versions:
			versions = response.Versions
		}
	}
}

func (b *Backend) query(
	ctx context.Context, recordType string, filter storage.FilterExpression,
) (serverVersion, recordVersion uint64, _ storage.RecordIterator, _ error) {
	message, err := filterMessage(filter)
	if err != nil {
		return 0, 0, nil, err
	}
	response, err := b.databroker.Query(ctx, &databrokerpb.QueryRequest{
		Type: recordType, Filter: message, Limit: math.MaxInt32,
	})
	if err != nil {
		return 0, 0, nil, b.failure(ctx, err)
	}
	if total := response.GetTotalCount(); total != int64(len(response.GetRecords())) {
		return 0, 0, nil, fmt.Errorf("a query without a limit gave %d records of %d", len(response.GetRecords()), total)
	}
	return response.GetServerVersion(), response.GetRecordVersion(), iterate(response.GetRecords()), nil
}

func iterate(records []*databrokerpb.Record) storage.RecordIterator {
	return func(yield func(*databrokerpb.Record, error) bool) {
		for _, record := range records {
			if !yield(record, nil) {
				return
			}
		}
	}
}

// Sync returns the changes after a version, each time it is iterated over.
func (b *Backend) Sync(
	ctx context.Context, recordType string, serverVersion, recordVersion uint64, wait bool,
) storage.RecordIterator {
	return func(yield func(*databrokerpb.Record, error) bool) {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		stream, err := b.databroker.Sync(ctx, &databrokerpb.SyncRequest{
			Type: recordType, ServerVersion: serverVersion, RecordVersion: recordVersion, Wait: proto.Bool(wait),
		})
		if err != nil {
			yield(nil, b.failure(ctx, err))
			return
		}
		control := storage.ControlFrameRecord()
		if !yield(&control, nil) {
			return
		}
		for {
			response, err := stream.Recv()
			if errors.Is(err, io.EOF) {
				return
			} else if err != nil {
				yield(nil, b.failure(ctx, err))
				return
			}
			if record := response.GetRecord(); record != nil && !yield(record, nil) {
				return
			}
		}
	}
}

// Versions returns the server's version and those of its oldest and newest change.
func (b *Backend) Versions(ctx context.Context) (serverVersion, earliest, latest uint64, _ error) {
	response, err := b.databroker.ServerInfo(ctx, new(emptypb.Empty))
	if err != nil {
		return 0, 0, 0, b.failure(ctx, err)
	}
	return response.GetServerVersion(), response.GetEarliestRecordVersion(), response.GetLatestRecordVersion(), nil
}

// GetOptions returns the options of a type.
func (b *Backend) GetOptions(ctx context.Context, recordType string) (*databrokerpb.Options, error) {
	response, err := b.databroker.GetOptions(ctx, &databrokerpb.GetOptionsRequest{Type: recordType})
	if err != nil {
		return nil, b.failure(ctx, err)
	}
	return response.GetOptions(), nil
}

// SetOptions replaces the options of a type; empty options remove them.
func (b *Backend) SetOptions(ctx context.Context, recordType string, options *databrokerpb.Options) error {
	_, err := b.databroker.SetOptions(ctx, &databrokerpb.SetOptionsRequest{Type: recordType, Options: options})
	if status.Code(err) == codes.NotFound && proto.Equal(options, new(databrokerpb.Options)) {
		return nil
	}
	return b.failure(ctx, err)
}

// Lease takes or renews a lease under the caller's own identifier and tells whether the caller holds it now.
func (b *Backend) Lease(ctx context.Context, name, id string, ttl time.Duration) (bool, error) {
	_, err := b.databroker.RenewLease(ctx, &databrokerpb.RenewLeaseRequest{
		Name: name, Id: id, Duration: durationpb.New(ttl),
	})
	if status.Code(err) == codes.AlreadyExists {
		return false, nil
	}
	return err == nil, b.failure(ctx, err)
}

// GetCheckpoint returns the stored checkpoint.
func (b *Backend) GetCheckpoint(ctx context.Context) (serverVersion, recordVersion uint64, _ error) {
	response, err := b.checkpoints.GetCheckpoint(ctx, new(databrokerpb.GetCheckpointRequest))
	if err != nil {
		return 0, 0, b.failure(ctx, err)
	}
	return response.GetCheckpoint().GetServerVersion(), response.GetCheckpoint().GetRecordVersion(), nil
}

// SetCheckpoint stores a checkpoint.
func (b *Backend) SetCheckpoint(ctx context.Context, serverVersion, recordVersion uint64) error {
	_, err := b.checkpoints.SetCheckpoint(ctx, &databrokerpb.SetCheckpointRequest{
		Checkpoint: &databrokerpb.Checkpoint{ServerVersion: serverVersion, RecordVersion: recordVersion},
	})
	return b.failure(ctx, err)
}

// Clear removes all records.
func (b *Backend) Clear(ctx context.Context) error {
	b.mu.Lock()
	b.written = nil
	b.mu.Unlock()
	_, err := b.databroker.Clear(ctx, new(emptypb.Empty))
	return b.failure(ctx, err)
}

// Clean waits until the server itself has removed the changes that were made through this backend before the given
// time.
func (b *Backend) Clean(ctx context.Context, options storage.CleanOptions) error {
	wanted := b.earliestToKeep(options.RemoveRecordChangesBefore)
	ctx, cancel := context.WithTimeout(ctx, b.history+cleanSlack)
	defer cancel()
	for {
		_, earliest, _, err := b.Versions(ctx)
		if err != nil {
			return fmt.Errorf("waiting for changes before version %d to be removed: %w", wanted, err)
		}
		if earliest >= wanted {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("changes before version %d are kept longer than %v and %v: the earliest is still %d",
				wanted, b.history, cleanSlack, earliest)
		case <-time.After(cleanPoll):
		}
	}
}

// earliestToKeep is the version of the first change at or after the time, or of the newest, which is always kept.
func (b *Backend) earliestToKeep(before time.Time) uint64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	var version uint64
	for _, change := range b.written {
		version = change.version
		if !change.at.Before(before) {
			break
		}
	}
	return version
}

// Close closes the connection.
func (b *Backend) Close() error {
	b.closed.Store(true)
	return b.connection.Close()
}

// failure gives a call's error the identity that a storage's error has: a call that the caller ended, by its context
// or by Close, is context.Canceled. A call that the *server* cancelled is left as it is.
func (b *Backend) failure(ctx context.Context, err error) error {
	if status.Code(err) == codes.Canceled && (ctx.Err() != nil || b.closed.Load()) {
		return fmt.Errorf("%w: %w", context.Canceled, err)
	}
	return err
}
