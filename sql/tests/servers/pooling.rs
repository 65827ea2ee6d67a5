//! PgBouncer in between, in both of its modes.

use std::time::Duration;

use databroker_sql::{TransactionOptions, Value, Wake};
use postgres_server::{PgBouncer, PoolMode, PostgresServer};

use super::{WAIT, one, open, run, statement};

#[tokio::test]
async fn transaction_pooling_is_noticed_and_everything_works() {
    let server = PostgresServer::start().unwrap();
    let bouncer = PgBouncer::start(&server, PoolMode::Transaction, 4).unwrap();
    let pool = open(&bouncer.url()).await.unwrap();
    assert!(pool.is_bounced());

    run(&pool, "CREATE TABLE t (id bigint)", &[]).await.unwrap();
    let insert = async || {
        for number in 0..20 {
            run(&pool, "INSERT INTO t VALUES ($1)", &[Value::Integer(number)])
                .await
                .unwrap();
            let mut transaction = pool.begin(&TransactionOptions::default(), WAIT).await.unwrap();
            let parameters = [Value::Integer(100 + number)];
            transaction
                .run(&statement("INSERT INTO t VALUES ($1)", &parameters))
                .await
                .unwrap();
            transaction.commit().await.unwrap();
        }
    };
    tokio::join!(insert(), insert(), insert());
    assert_eq!(one(&pool, "SELECT count(*) FROM t").await, "120");

    // Nothing is notified, so waiting ends soon and says that one has to look.
    let mut listener = pool.listen(vec!["c".to_owned()]);
    assert_eq!(listener.wait(Duration::from_secs(20)).await, Wake::Missed);
}

#[tokio::test]
async fn session_pooling_is_as_good_as_none() {
    let server = PostgresServer::start().unwrap();
    let bouncer = PgBouncer::start(&server, PoolMode::Session, 4).unwrap();
    let pool = open(&bouncer.url()).await.unwrap();
    assert!(!pool.is_bounced());
    let mut listener = pool.listen(vec!["c".to_owned()]);
    assert_eq!(listener.wait(WAIT).await, Wake::Missed);
    run(&pool, "SELECT pg_notify('c', '')", &[]).await.unwrap();
    assert_eq!(listener.wait(WAIT).await, Wake::Notified);
}
