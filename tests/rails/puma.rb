# frozen_string_literal: true

# One process, so that the counters in its memory see every request.
workers 0
threads 2, Integer(ENV.fetch('RAILS_THREADS', '4'))
environment 'production'

bind "tcp://#{ENV['RAILS_TCP']}" if ENV['RAILS_TCP'].to_s != ''
bind "unix://#{ENV['RAILS_SOCKET']}" if ENV['RAILS_SOCKET'].to_s != ''

# For benchmarks: no pauses of Ruby's garbage collector.
GC.disable if ENV['RAILS_GC'] == 'off'
